"""record.json: what a finished run was made with, what it reached, and what that took.

All that somebody else needs to compare the run with theirs, in one file without paths or names of
theirs; benchmarks/board.py checks such files, and ranks them.
"""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from resnet50.config.train_config import TrainConfig
from resnet50.records import ownership
from resnet50.system import files, limits
from resnet50.training.plan import Plan

FORMAT = 1
PLACES = (
    "data_dir",
    "run_dir",
    "init_from",
    "mirror",
)  # settings that say where things lie on this machine
FROM_CONFIG = ("commit", "versions", "gpus", "device", "precision")


def write(
    cfg: TrainConfig,
    plan: Plan,
    data: Mapping[str, object],
    rows: Sequence[Mapping[str, object]],
    paid_s: float,
) -> None:
    """Write the record of the run in cfg.run_dir, which has ended. Raises OSError.

    data: fingerprints of both splits; rows: of metrics.csv; paid_s: seconds of machine time in all
    attempts, without the start of Python. Commit, versions, and machine are the last attempt's.
    """
    run_dir = Path(cfg.run_dir)
    try:
        made_with = files.read_json(run_dir / ownership.CONFIG)
    except ValueError:
        made_with = {}  # damaged while the run ran: board.py tells what is missing
    settings = cfg.to_json()
    record = {
        "format": FORMAT,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {name: settings[name] for name in settings if name not in PLACES},
        **{name: made_with.get(name) for name in FROM_CONFIG},
        "host": {
            "cpu": limits.cpu_name(),
            "cores": limits.num_cores(),
            "ranks": plan.world_size,
            "platform": platform.platform(),
        },
        "data": data,
        "steps_per_epoch": plan.steps_per_epoch,
        "price_per_hour": cfg.price_per_hour,
        "seconds": round(paid_s, 2),
        "cost_usd": round(paid_s / 3600 * cfg.price_per_hour, 4),
        "curve": [
            {
                "epoch": row["epoch"],
                "step": row["step"],
                "seconds": row["seconds"],
                "cost_usd": row["cost_usd"],
                "top1": row["val_top1"],
                "top5": row["val_top5"],
            }
            for row in rows
            if row["val_top1"] is not None
        ],
    }
    files.write_json(run_dir / ownership.RECORD, record)
