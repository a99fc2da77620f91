"""Two ranks agree on a batch size again and again, each with different sizes that fit."""

import os
from collections.abc import Sequence

import torch.distributed as dist

from resnet50.config.train_config import TrainConfig
from resnet50.system.interruption import Interrupted
from resnet50.training import batch_fit, distributed

ranks, rendezvous, asked = distributed.read_ranks(), dist.rendezvous, []
cfg = TrainConfig(total_batch_size=32, device_batch_size="auto")


def settle(fitting: Sequence[int | None]) -> int | str:
    """fitting: what fits on each rank, None for one that is interrupted."""

    def largest_that_fits(cfg: TrainConfig, device: object, sizes: list[int], stop: object) -> int:
        asked.append(list(sizes))
        if fitting[ranks.rank] is None:
            raise Interrupted
        return fitting[ranks.rank]

    batch_fit.largest_that_fits = largest_that_fits
    prefix = f"settled {len(asked)}"  # a process agrees only once: again needs other keys
    dist.rendezvous = lambda *args, **more: iter(
        [(dist.PrefixStore(prefix, next(rendezvous(*args, **more))[0]), 0, 0)]
    )
    try:
        return batch_fit.fit_batch_size(cfg, ranks, None, lambda text: None).device_batch_size
    except (Interrupted, ValueError) as error:
        return type(error).__name__


found = [settle(fitting) for fitting in ((8, 4), (2, 16), (16, 0), (8, None), (None, 0))]
dist.rendezvous = rendezvous
distributed.connect(ranks)
line = f"rank {ranks.rank}: {found}, {asked[0]}, {distributed.agree([1], ranks)}\n"
os.write(1, line.encode())  # whole, whatever the other rank writes
distributed.disconnect()
