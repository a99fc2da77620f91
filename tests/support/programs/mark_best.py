"""Mark a checkpoint as the best one."""

import sys
from pathlib import Path

from resnet50.records import checkpoint

checkpoint.mark_best(Path(sys.argv[1]))
