"""How a run stands, read from its folder by whoever is not part of it.

run_folder.py is for the processes that train; this needs the standard library only, Python 3.10.
"""

import fcntl
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

FLOCK = "hhqqi"  # struct flock of Linux on 64 bits


def lock_holder(run_dir: Path) -> int:
    """Process id of the supervisor that trains there; 0 if none does. Takes no lock itself."""
    try:
        with open(run_dir / ".supervisor.lock", "rb") as file:
            asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            told = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except FileNotFoundError:
        return 0
    return 0 if told[0] == fcntl.F_UNLCK else told[4]


def read_status(run_dir: Path) -> dict[str, object]:
    """status.json; empty without one. Raises ValueError for a damaged file."""
    path = run_dir / "status.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def progress(status: Mapping) -> str:
    """Step, epoch, top-1, speed, time and money, as far as they are known."""
    parts = [f"step {status.get('step', 0):,} of {status.get('stop_step', 0):,}"]
    if "epoch" in status:
        parts.append(f"epoch {status['epoch']:.2f}")
    if status.get("best_top1") is not None:
        parts.append(f"best top-1 {status['best_top1']:.2f}%")
    if "images_per_s" in status:
        parts.append(f"{status['images_per_s']:,.0f} images/s")
        parts.append(f"waiting for data {status['data_wait_pct']:.0f}%")
    left_s = status.get("remaining_s", 0) if status.get("state") == "running" else 0
    if left_s:
        parts.append(
            f"left {left_s / 3600:.1f} h" if left_s > 5400 else f"left {left_s / 60:.0f} min"
        )
    if status.get("cost_usd"):
        spent = status["cost_usd"]
        rate = spent / max(status["paid_s"], 1)
        parts.append(f"${spent:.2f} so far, ${spent + rate * left_s:.2f} at the end")
    return " · ".join(parts)
