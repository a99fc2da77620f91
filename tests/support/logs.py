"""A run's log, filled as training fills it."""

from pathlib import Path

from resnet50.config.train_config import TrainConfig
from resnet50.records.log import RunLog
from resnet50.records.results import Results
from resnet50.training.plan import make_plan

MEANS = {"loss": 1.5, "top1": 40.0, "top5": 90.0}


def make_log(run_dir: Path, is_main: bool = True, clock: object = None, **more: object) -> RunLog:
    """Of a run of three epochs of four steps. more: settings."""
    settings = {"epochs": 3, "total_batch_size": 16, "device_batch_size": 8, "log_every_s": 0.0}
    cfg = TrainConfig(**{**settings, "run_dir": str(run_dir), **more})
    words = {} if clock is None else {"clock": clock}
    return RunLog(cfg, make_plan(cfg, 66), Results(), is_main=is_main, attempt="a1", **words)


def add_row(log: RunLog, step: int, val: dict | None) -> None:
    log.results.rows.append(log.row_of_epoch(step, 0.01 * step, MEANS, val))
    log.epoch_done()


def fill(log: RunLog, first: int, last: int) -> None:
    """Steps from the first to the last; every second epoch is evaluated."""
    for step in range(first, last + 1):
        log.step_done(step, 0.5, 0.1)
        log.train_record(step, 0.01 * step, MEANS)
        if step % 4 == 0:
            add_row(log, step, {**MEANS, "top1": 10.0 + step % 8} if step % 8 == 0 else None)
