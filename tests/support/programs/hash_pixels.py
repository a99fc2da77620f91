"""Print a hash of every micro-batch that one rank trains on in the first two epochs.

usage: hash_pixels.py DATA_DIR RANK WORLD_SIZE NUM_WORKERS
"""

import hashlib
import sys
from pathlib import Path

import torch

from resnet50.config.train_config import TrainConfig
from resnet50.data import crops, splits
from resnet50.data.loader import Loader
from resnet50.training.plan import make_plan, train_keys

rank, world_size, num_workers = map(int, sys.argv[2:])
train, _ = splits.open_dataset(Path(sys.argv[1]))
cfg = TrainConfig(
    epochs=2,
    total_batch_size=16,
    device_batch_size=4,
    start_image_size=32,
    image_size=40,
    grow_end_epoch=1.0,
    image_size_multiple=8,
)
plan = make_plan(cfg, len(train), world_size)
keys = train_keys(cfg, plan, rank, 0, plan.total_steps)
fill = crops.TrainImages(train, 0, crops.Augmentation())
for batch in Loader([fill], 4, 40, num_workers, torch.device("cpu")).batches(0, keys):
    tensors = (batch.images, batch.labels, batch.flips)
    print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest())
