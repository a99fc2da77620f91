"""Print the crc32 of pickled members of archives, in a list."""

import pickle
import sys
import zlib
from pathlib import Path

from resnet50.packing import archives

members = pickle.loads(Path(sys.argv[1]).read_bytes())
print([zlib.crc32(archives.read(member)) for member in members])
