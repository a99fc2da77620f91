"""Save one checkpoint after another into a folder, and print the step of each that is written."""

import sys
from pathlib import Path

import torch

from resnet50.records import checkpoint

folder = Path(sys.argv[1])
step = checkpoint.newest_step(folder)
while True:
    step += 1
    checkpoint.save(folder, step, {"step": step, "w": torch.full((200_000,), float(step))})
    checkpoint.prune(folder, 3)
    print(step, flush=True)
