"""How children are handled that run out of memory, are killed, have a bug, or never begin."""

import os
import signal
import sys

if __name__ == "__mp_main__" and "broken" in sys.argv:
    os._exit(1)

import torch

from resnet50.config.train_config import TrainConfig
from resnet50.system.interruption import Interruption
from resnet50.training import batch_fit


def take_step(cfg: TrainConfig, device: torch.device, sizes: list[int]) -> None:
    if sizes[-1] == 64:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
    if sizes[-1] == 32:
        os.kill(os.getpid(), signal.SIGKILL)
    if sizes[-1] == 7:
        raise KeyError("a mistake")


batch_fit.take_step = take_step  # in the child, too, which imports this file again
if __name__ == "__main__":
    stop, cpu = Interruption(), torch.device("cpu")
    for sizes in ([64, 32, 16, 8], [7, 2], [2]):
        try:
            print(batch_fit.largest_that_fits(TrainConfig(), cpu, sizes, stop))
        except RuntimeError as error:
            print(error)
            sys.argv.append("broken")
