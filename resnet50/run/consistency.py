"""What all ranks must agree on before anything is built: settings, data, and one run folder.

Hosts may read copies of the data and mount folders in different places. But the run folder must be
shared: only rank 0 writes to it, and every rank resumes from the checkpoints in it.
"""

import json
import socket
import time
from pathlib import Path

from resnet50.config.train_config import TrainConfig
from resnet50.data.splits import Splits, fingerprint
from resnet50.records import checkpoint, run_folder
from resnet50.records.status import known_status
from resnet50.training import distributed
from resnet50.training.distributed import Ranks

# NFS may hide another host's new files for this long, its default acdirmax.
PATIENCE_S = 60.0
POLL_S = 0.2
# Settings, from host to host; but a price that turns dollars into a schedule's time may not.
MAY_DIFFER = ("data_dir", "run_dir", "price_per_hour")


def check(cfg: TrainConfig, ranks: Ranks, attempt: str, data: Splits, saved_step: int) -> int:
    """The step that all ranks resume from: rank 0's newest checkpoint, -1 without one.

    attempt: rank 0 has written its own to status.json by now. Every rank must call this. Raises the
    same ValueError on all ranks, naming ranks, hosts and options that differ.
    """
    if ranks.world_size == 1:
        return saved_step
    mine = {
        "host": socket.gethostname(),
        "attempt": attempt,
        "settings": compared(cfg),
        "data": {"train": fingerprint(data.train), "val": fingerprint(data.val)},
        "step": saved_step,
    }
    theirs = exchange(mine, ranks)
    for rank, other in enumerate(theirs):
        who = f"rank {rank} on {other['host']}"
        refuse_other_settings(who, other["settings"], theirs[0]["settings"])
        refuse_other_data(who, other["data"], theirs[0]["data"], cfg)
    step = theirs[0]["step"]
    run_dir = Path(cfg.run_dir)
    mine |= {"is_shared": sees_rank_0(run_dir, theirs[0]["attempt"], step)}
    mine["step"] = checkpoint.newest_step(run_folder.checkpoints_dir(run_dir))
    theirs = exchange(mine, ranks)
    if all(other["is_shared"] for other in theirs):
        return step
    found = "; ".join(
        f"rank {rank} on {other['host']}: "
        + (f"step {other['step']}" if other["step"] >= 0 else "none")
        for rank, other in enumerate(theirs)
        if rank == 0 or not other["is_shared"]
    )
    raise ValueError(
        f"--run_dir {run_dir} is not the same folder on all hosts: it must be on a file system "
        f"that they share. Newest checkpoint there: {found}"
    )


def compared(cfg: TrainConfig) -> dict[str, object]:
    """The settings that must be the same on every host."""
    return {
        name: value
        for name, value in cfg.to_json().items()
        if name not in MAY_DIFFER or (name == "price_per_hour" and cfg.budget_usd)
    }


def check_steps(num_steps: int, ranks: Ranks) -> None:
    """All ranks must have planned a run of the same length. Every rank of a run with a budget must
    call this. Raises the same ValueError on all ranks.

    Options that change nothing may do so here: --epochs, if it is the recipe's, limits the plan.
    """
    mine = {"host": socket.gethostname(), "settings": {"num_steps": num_steps}}
    theirs = exchange(mine, ranks)
    for rank, other in enumerate(theirs):
        who = f"rank {rank} on {other['host']}"
        refuse_other_settings(who, other["settings"], theirs[0]["settings"])


def run_of_rank_0(cfg: TrainConfig, run: str, ranks: Ranks) -> str:
    """The id that rank 0 gives, once it does. Every rank with a mirror must call this.

    A rank without one is in `check` by now, which tells it of the difference. Raises ValueError.
    """
    if ranks.world_size == 1:
        return run
    settings = {"mirror": cfg.mirror}
    mine = {"host": socket.gethostname(), "settings": settings, "data": {}, "run": run}
    theirs = exchange(mine, ranks)
    for rank, other in enumerate(theirs):
        refuse_other_settings(f"rank {rank} on {other['host']}", other["settings"], settings)
    return theirs[0]["run"]


def exchange(mine: dict[str, object], ranks: Ranks) -> list[dict]:
    return [
        json.loads(word) for word in distributed.exchange_before_connecting(json.dumps(mine), ranks)
    ]


def refuse_other_settings(who: str, theirs: dict, first: dict) -> None:
    """Raise ValueError naming the settings in which a rank differs from rank 0."""
    differing = [
        f"--{name} {theirs.get(name)} (rank 0: {first[name]})"
        for name in first
        if theirs.get(name) != first[name]
    ]
    if differing:
        raise ValueError(
            f"{who} has different settings from rank 0: {', '.join(differing)}. Run the same "
            "command on every host, with a --run_dir on a file system that they share"
        )


def refuse_other_data(who: str, theirs: dict, first: dict, cfg: TrainConfig) -> None:
    """Raise ValueError naming the split in which a rank's data differ from rank 0's."""
    for split, rank_0s in first.items():
        if theirs[split] != rank_0s:
            raise ValueError(
                f"--data_dir {cfg.data_dir}: {who} has different data from rank 0: its {split} "
                f"split has {theirs[split]['num_images']} images in {theirs[split]['num_classes']} "
                f"classes, rank 0's {rank_0s['num_images']} in {rank_0s['num_classes']}, "
                "or the file names or packing options differ. Copy the same data to every host"
            )


def sees_rank_0(run_dir: Path, attempt: str, step: int) -> bool:
    """Whether this rank's folder, too, has what rank 0 wrote and found, now or soon."""
    deadline = time.monotonic() + PATIENCE_S
    while not has_start(run_dir, attempt, step):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def has_start(run_dir: Path, attempt: str, step: int) -> bool:
    # Empty too while another host replaces the file under a network file system's reader.
    found = known_status(run_dir)
    newest = checkpoint.newest_step(run_folder.checkpoints_dir(run_dir))
    return found.get("attempt") == attempt and newest == step
