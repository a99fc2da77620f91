"""Open a pack, have four workers fill batches from it; print seconds and megabytes added.

usage: use_pack_with_workers.py PACK
"""

import json
import os
import sys
import time
from pathlib import Path

import torch

from resnet50.data import crops, sampling
from resnet50.data.loader import Loader
from resnet50.data.pack import PackedImages
from resnet50.data.sampling import BatchKey


def use_with_workers(path: str) -> None:
    """Open a pack, have four workers fill batches from it; prints seconds and megabytes added."""
    before, start = proportional_bytes([os.getpid()]), time.monotonic()
    pack = PackedImages(Path(path))
    seconds = time.monotonic() - start
    loader = Loader(
        [crops.TrainImages(pack, 0, crops.Augmentation())], 8, 64, 4, torch.device("cpu")
    )
    idle = proportional_bytes([os.getpid(), *(worker.pid for worker in loader._workers)])
    order = sampling.epoch_order(0, 0, len(pack))
    keys = [BatchKey(0, order[start : start + 8], 64) for start in range(0, 2400, 8)]
    for _ in loader.batches(0, keys):
        pass
    after = proportional_bytes([os.getpid(), *(worker.pid for worker in loader._workers)])
    megabytes = (after - before) / 1e6
    print(
        json.dumps(
            {
                "num_images": len(pack),
                "open_s": seconds,
                "megabytes": megabytes,
                "idle": idle / 1e6,
            }
        )
    )


def proportional_bytes(pids: list[int]) -> int:
    """Memory of processes, what they share counted once (PSS)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


use_with_workers(sys.argv[1])
