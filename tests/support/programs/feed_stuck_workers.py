"""Three workers that never give a batch; then wait with them, or end.

usage: feed_stuck_workers.py wait|exit MARK
"""

import sys
import time

import numpy as np
import torch

from resnet50.data.batch import Slot
from resnet50.data.loader import Loader
from resnet50.data.sampling import BatchKey


def stuck(slot: Slot) -> None:
    time.sleep(3600)


loader = Loader([stuck], 4, 8, 3, torch.device("cpu"))
stream = loader.batches(0, (BatchKey(0, np.arange(4), 8) for _ in range(9)))
print("started", flush=True)
if sys.argv[1] == "wait":
    time.sleep(3600)
