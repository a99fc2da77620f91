"""Address space that steps of two batch sizes take, in kB, and the size that then fits.

usage: peak_memory.py SMALLER LARGER
"""

import re
import sys
from pathlib import Path

import torch

import train  # noqa: F401 (what it imports takes address space, too)
from resnet50.config.train_flags import Request
from resnet50.run.resolve import resolve
from resnet50.system.interruption import Interruption
from resnet50.training import batch_fit

take_step = batch_fit.take_step
smaller, larger = map(int, sys.argv[1:3])


def noted(cfg: object, device: torch.device, sizes: list[int]) -> None:
    for size in (smaller, sizes[-1]):
        take_step(cfg, device, (2, size))
        peak = re.search(r"VmPeak:\s+(\d+) kB", Path("/proc/self/status").read_text())
        print(peak[1], flush=True)


batch_fit.take_step = noted  # in the child, too, which imports this file again
if __name__ == "__main__":
    settings = {"recipe": "tiny", "amp": "fp32", "image_size": 160, "eval_resize_size": 160}
    cfg = resolve(Request(settings, fresh=True))
    sizes = batch_fit.candidates(larger)
    print(batch_fit.largest_that_fits(cfg, torch.device("cpu"), sizes, Interruption()))
