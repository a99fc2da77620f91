"""Hashes of what every step trains on, for one run a line of a file.

usage: hash_steps.py DATA_DIR FILE

A line is a list of (ranks, loaders, first step, end): of all ranks in turn, each with a loader of
its own, from one restart to the next.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from resnet50.config.train_config import TrainConfig
from resnet50.data import crops, splits
from resnet50.data.loader import Loader
from resnet50.training.plan import make_plan, train_keys

train, _ = splits.open_dataset(Path(sys.argv[1]))
augmentation = crops.Augmentation(min_crop_scale=0.2, trivial_augment=True, random_erasing=0.5)
fill = crops.TrainImages(train, 0, augmentation)


# Three epochs of 32, 40 and 48 px.
cfg = TrainConfig(
    epochs=3,
    total_batch_size=16,
    device_batch_size=4,
    start_image_size=32,
    image_size=48,
    grow_end_epoch=2.0,
    image_size_multiple=8,
)


def hashes_of(rank: int, world_size: int, num_workers: int, first: int, last: int) -> Iterator[str]:
    loader = Loader([fill], 4, 48, num_workers, torch.device("cpu"))
    plan = make_plan(cfg, len(train), world_size)
    keys = list(train_keys(cfg, plan, rank, first, last))
    for key, batch in zip(keys, loader.batches(0, keys), strict=True):
        parts = [key.indices, *(t.numpy() for t in (batch.images, batch.labels, batch.flips))]
        yield hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    loader.close()


for line in Path(sys.argv[2]).read_text().splitlines():
    steps = []
    for world_size, num_workers, first, last in json.loads(line):
        shared = [
            list(hashes_of(rank, world_size, num_workers, first, last))
            for rank in range(world_size)
        ]
        steps += [shared[m % world_size][m // world_size] for m in range(4 * (last - first))]
    print(json.dumps(steps), flush=True)
