"""train.py on two ranks, the second of which has no more memory at step FULL_AT."""

import os
import sys

import torch

import train
from resnet50.training import engine

take_step = engine.train_step


def train_step(state: engine.TrainState, *args: object) -> torch.Tensor:
    if os.environ["RANK"] == "1" and state.step == int(os.environ["FULL_AT"]):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand more")
    return take_step(state, *args)


engine.train_step = train_step
sys.exit(train.main(sys.argv[1:]))
