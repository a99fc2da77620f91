"""A checkpoint that the disk has no room for is reported, and not begun."""

import errno
import sys
from pathlib import Path

import torch

from resnet50.records.checkpoint_writer import CheckpointWriter

writer = CheckpointWriter(Path(sys.argv[1]), keep=3)
writer.start(1, {"w": torch.zeros(600_000)}, is_best=True)
writer.wait()
assert writer.take_failures()[0].error.errno == errno.ENOSPC
