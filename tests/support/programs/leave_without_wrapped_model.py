"""A rank of train.py or lr_finder.py that looks for wrapped models as it leaves the process group.

torchrun ... leave_without_wrapped_model.py train FLAGS
"""

import gc
import importlib
import sys

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

destroy = dist.destroy_process_group


def destroy_and_tell() -> None:
    alive = [one for one in gc.get_objects() if isinstance(one, DistributedDataParallel)]
    print(f"leaving with {len(alive)} wrapped models", flush=True)
    destroy()


dist.destroy_process_group = destroy_and_tell
sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
