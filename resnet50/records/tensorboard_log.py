"""The curves of a run for TensorBoard, beside log.jsonl: `train.py --tensorboard`.

    pip install tensorboard
    tensorboard --logdir runs

log.jsonl, metrics.csv and curves.png hold the same and are always written; this is for those who
compare many runs, and for Hugging Face, which shows such files of a repository in a tab.
"""

import importlib
from pathlib import Path

FOLDER = "tensorboard"
LEFT_OUT = ("kind", "step")  # entries of a record that are not curves


def check_installed() -> None:
    """Raise ValueError naming the package and the remedy if it is not there."""
    try:
        importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        raise ValueError(
            "--tensorboard needs a package: pip install tensorboard (log.jsonl, metrics.csv and "
            "curves.png hold the same without it)"
        ) from None


class TensorBoardLog:
    """Writes records of log.jsonl as scalars `train/loss`, `epoch/val_top1` and so on."""

    def __init__(self, run_dir: Path, step: int) -> None:
        """step: of the checkpoint that the run resumes from; what was shown after it is dropped."""
        from torch.utils.tensorboard import SummaryWriter  # takes seconds: not without the flag

        # max_queue 1: a full disk raises at the write, not later in some thread.
        self._writer = SummaryWriter(
            str(run_dir / FOLDER), purge_step=step + 1, max_queue=1, flush_secs=10
        )

    def add(self, record: dict[str, object]) -> None:
        """Show the numbers of a record of kind "train" or "epoch" at its step. Raises OSError."""
        for name, value in record.items():
            if name not in LEFT_OUT and isinstance(value, int | float):
                self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        """Write out what is still in memory. Raises OSError."""
        self._writer.close()
