"""packing/fetch.py with ranges of some kB instead of 32 MB: python ... BYTES FLAGS..."""

import os
import sys

from resnet50.packing import fetch

fetch.RANGE_BYTES = int(sys.argv[1])
fetch.NUM_PARALLEL = 3
code = fetch.main(sys.argv[2:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
