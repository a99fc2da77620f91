"""The readable records of a run: log.jsonl, metrics.csv, metrics.md, curves.png, status.json, and
record.json at its end.

    runs/NAME/log.jsonl      one JSON object per line: training steps, epochs, events
    runs/NAME/metrics.csv    one row per epoch; metrics.md the same as a table to read
    runs/NAME/tensorboard/   with --tensorboard: the curves once more

Rank 0 writes. A disk that is full costs log lines, never the run.
"""

import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from resnet50.config.train_config import TrainConfig
from resnet50.records import metrics, ownership, record, status
from resnet50.records.display import Display, Throttle
from resnet50.records.paid_clock import PaidClock, paid_before
from resnet50.records.results import Results
from resnet50.records.tensorboard_log import TensorBoardLog
from resnet50.system import files
from resnet50.training.plan import Plan, image_size_at

STATUS_EVERY_S = 10.0
CURVES_EVERY_S = 60.0  # drawing takes half a second, which a tiny run would feel every epoch


def on_main_rank(method: Callable[..., None]) -> Callable[..., None]:
    """Decorator for methods that write: they do nothing on ranks other than the first."""

    @functools.wraps(method)
    def write(self: "RunLog", *args: object, **kwargs: object) -> None:
        if self.is_main:
            method(self, *args, **kwargs)

    return write


class RunLog:
    """The record of one run over all its attempts, with the time and money that they took."""

    def __init__(
        self,
        cfg: TrainConfig,
        plan: Plan,
        results: Results,
        *,
        is_main: bool,
        attempt: str,
        paid_clock: PaidClock | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """paid_clock: None for one that begins now."""
        self.cfg, self.plan, self.results = cfg, plan, results
        self.is_main, self.attempt = is_main, attempt
        self.run_dir = Path(cfg.run_dir)
        self.display = Display(cfg, plan, is_main, clock)
        self._throttle = Throttle(clock)
        self._steps: list[dict] = []  # training records, for the curves
        self.more_status: Callable[[], dict[str, object]] = dict  # for status.json, from others
        self._tensorboard: TensorBoardLog | None = None
        if paid_clock is None:
            before_s = paid_before(self.run_dir) if is_main else 0.0
            paid_clock = PaidClock(self.run_dir, before_s, clock(), clock=clock)
        self._paid_clock = paid_clock
        self._start_epoch()

    @property
    def paid_s(self) -> float:
        """Seconds of machine time that this run has used, in all its attempts (paid_clock.py)."""
        return self._paid_clock.paid_s

    @property
    def cost_usd(self) -> float:
        return self.paid_s / 3600 * self.cfg.price_per_hour

    @on_main_rank
    def begin(self, step: int) -> None:
        """Continue from the checkpoint of `step`: what was logged after it is dropped."""
        with self._disk_may_be_full():
            records = files.read_records(self.run_dir / ownership.LOG)
            # Steps after the checkpoint are trained again, and logged again. What happened to the
            # run (a signal, a damaged file) did happen, and stays.
            kept = [r for r in records if r["kind"] == "event" or r["step"] <= step]
            self._steps = [record for record in kept if record["kind"] == "train"]
            lines = "".join(json.dumps(record) + "\n" for record in kept)
            files.write_text(self.run_dir / ownership.LOG, lines, sync=False)
            self._write_tables()
            if self.cfg.tensorboard:
                self._tensorboard = TensorBoardLog(self.run_dir, step)

    def step_done(self, step: int, step_s: float, wait_s: float) -> None:
        """Record one training step: how long it took, and how much of that it waited for data."""
        # Per epoch, not since the start: images grow from epoch to epoch, and steps get slower.
        self._epoch_steps += 1
        self._epoch_s += step_s
        self._wait_s += wait_s
        self.display.advance(step)

    @on_main_rank
    def train_record(self, step: int, lr: float, means: dict[str, float]) -> None:
        """Log one step's own loss and hits, refresh the display, and status.json now and then."""
        record = {"kind": "train", "step": step, "lr": lr, **means}
        speed = self._speed()
        left_s = self._remaining_s(step, speed["images_per_s"])
        # Kept in memory too: the curves are redrawn after every epoch.
        self._steps.append(record)
        self._append({**record, **speed, "seconds": round(self.paid_s, 1)})
        self.display.show(step, lr, means["loss"], speed, left_s, self.cost_usd)
        # Each write is synced to the disk, so it is not done at every step.
        if self._throttle.is_due("status", STATUS_EVERY_S):
            self.write_status(status.RUNNING, step, **speed, remaining_s=round(left_s))

    def row_of_epoch(
        self, step: int, lr: float, train: dict[str, float], val: dict[str, float] | None
    ) -> dict[str, object]:
        """The row of an epoch that ended at `step`; val is None if it was not evaluated."""
        return {
            "epoch": round(self.plan.epoch_of(step), 4),
            "step": step,
            "seconds": round(self.paid_s, 2),
            "lr": lr,
            **{f"train_{name}": train[name] for name in ("loss", "top1", "top5")},
            # The same columns in every row: None where the epoch was not evaluated.
            **{f"val_{name}": val and val[name] for name in ("loss", "top1", "top5")},
            **self._speed(),
            "cost_usd": round(self.cost_usd, 4),
        }

    def epoch_done(self) -> None:
        """Write the tables, now and then the curves, and the line of the results' last row."""
        # On every rank: each measures the speed for its next row.
        self._start_epoch()
        self._write_epoch()

    @on_main_rank
    def _write_epoch(self) -> None:
        row = self.results.rows[-1]
        # Otherwise the bar would remain between the epochs' lines.
        self.display.close_bar()
        self._append({"kind": "epoch", **row})
        # Whole tables each time: 50 rows cost nothing, and no row can be missing.
        with self._disk_may_be_full():
            self._write_tables()
        if self._throttle.is_due("curves", CURVES_EVERY_S):
            self._draw_curves()
        self.say(metrics.epoch_line(row, self.plan.num_epochs))

    def replan(self, plan: Plan) -> None:
        """Show a plan whose end was moved."""
        self.plan = self.display.plan = plan

    @on_main_rank
    def event(self, step: int, text: str) -> None:
        """Print a line and keep it in log.jsonl, even if the steps around it are dropped."""
        self.say(text)
        self._append({"kind": "event", "step": step, "text": text})

    def say(self, text: str) -> None:
        """Print a line without keeping it."""
        self.display.say(text)

    @on_main_rank
    def write_status(self, state: str, step: int, **more: object) -> None:
        """Write status.json."""
        with self._disk_may_be_full():
            status.write_status(
                self.run_dir,
                state=state,
                attempt=self.attempt,
                step=step,
                stop_step=self.plan.stop_step,
                epoch=round(self.plan.epoch_of(step), 4),
                best_top1=self.results.best_top1,
                paid_s=round(self.paid_s, 2),
                cost_usd=round(self.cost_usd, 4),
                **self.more_status(),
                **more,
            )

    @on_main_rank
    def close(self, state: str, step: int, saved_step: int = -1) -> None:
        """Write what is pending; for a finished run, print its summary too.

        saved_step: of the newest checkpoint on the disk.
        """
        self.display.close_bar()
        # For an interrupted run, too: its curves are what the user looks at next.
        if self.results.rows:
            self._draw_curves()
        if self._tensorboard:
            with self._disk_may_be_full():
                self._tensorboard.close()
        # A finished run has no time left; any other will, when it resumes.
        if state == status.DONE:
            self.write_status(state, step, saved_step=saved_step, remaining_s=0)
            self.say(
                metrics.summary(self.results, self.paid_s, self.cfg.price_per_hour, self.run_dir)
            )
        else:
            self.write_status(state, step, saved_step=saved_step)

    @on_main_rank
    def write_record(self, data: dict[str, object]) -> None:
        """Write record.json of a finished run. data: fingerprints of both splits."""
        with self._disk_may_be_full():
            record.write(self.cfg, self.plan, data, self.results.rows, self.paid_s)

    def _speed(self) -> dict[str, float]:
        """Images per second and percent of the time waiting for data, in this epoch so far."""
        # Images of all ranks: the batch is the whole run's.
        images = self._epoch_steps * self.plan.total_batch_size
        return {
            "images_per_s": round(images / max(self._epoch_s, 1e-9), 1),
            "data_wait_pct": round(100 * self._wait_s / max(self._epoch_s, 1e-9), 2),
        }

    def _start_epoch(self) -> None:
        self._epoch_steps, self._epoch_s, self._wait_s = 0, 0.0, 0.0

    def _remaining_s(self, step: int, images_per_s: float) -> float:
        """Seconds to the run's end at this epoch's speed, less when --max_minutes come first, or
        the end of a budget."""
        # Later epochs may have larger images, which take time in proportion to their area.
        work = self.plan.images_left(step, functools.partial(image_size_at, self.cfg))
        remaining_s = work / max(images_per_s, 1e-9)
        if self.cfg.max_minutes:
            remaining_s = min(remaining_s, max(60 * self.cfg.max_minutes - self.paid_s, 0))
        if self.cfg.budget_s:
            remaining_s = min(remaining_s, max(self.cfg.budget_s - self.paid_s, 0))
        return remaining_s

    def _append(self, record: dict) -> None:
        # Opened for each line, so that a log that was moved, or a disk that is back, is no error.
        with self._disk_may_be_full(), open(self.run_dir / ownership.LOG, "a") as file:
            file.write(json.dumps(record) + "\n")
        if self._tensorboard and record["kind"] != "event":
            with self._disk_may_be_full():
                self._tensorboard.add(record)

    def _write_tables(self) -> None:
        rows = self.results.rows
        files.write_text(self.run_dir / ownership.METRICS, metrics.as_csv(rows), sync=False)
        files.write_text(self.run_dir / "metrics.md", metrics.as_markdown(rows), sync=False)

    def _draw_curves(self) -> None:
        # matplotlib takes half a second to import, which every supervisor would pay.
        from resnet50.records import curves

        title = f"{self.run_dir.name} ({self.cfg.recipe})"
        with self._disk_may_be_full():
            curves.draw(self.run_dir / "curves.png", self.results.rows, self._steps, title)

    @contextmanager
    def _disk_may_be_full(self) -> Iterator[None]:
        """Continue without a log line or a picture; say so once a minute."""
        try:
            yield
        except OSError as error:
            # A lost line is worth a warning and no more: the checkpoints are what must not be lost.
            if self._throttle.is_due("warning", 60.0):
                self.say(f"warning: {self.run_dir}: {error.strerror}: skipping this record")
