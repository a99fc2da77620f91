"""What a run tells: progress, log.jsonl, metrics.csv, metrics.md, curves.png, dollars.

    runs/NAME/log.jsonl      one JSON object a line: training steps, epochs, events
    runs/NAME/metrics.csv    one row an epoch; metrics.md the same as a table to read
    runs/NAME/tensorboard/   with --tensorboard: the curves once more

Every rank keeps the rows, rank 0 writes. A disk that is full costs log lines, never the run.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

import run_folder
import tables
from schedule import Plan
from tensorboard_log import TensorBoardLog

STATUS_EVERY_S = 10.0
CURVES_EVERY_S = 60.0  # drawing takes half a second, which a tiny run would feel every epoch


class RunLog:
    """The record of one run over all its attempts; `rows` is what metrics.csv holds."""

    def __init__(
        self,
        run_dir: Path,
        plan: Plan,
        *,
        is_main: bool,
        attempt: str,
        title: str,
        price_per_hour: float,
        log_every_s: float,
        max_minutes: float = 0.0,
        image_size_at: Callable[[int], int] = lambda epoch: 1,
        tensorboard: bool = False,
    ) -> None:
        self.run_dir, self.plan, self.is_main, self.title = run_dir, plan, is_main, title
        self.attempt, self.price_per_hour, self.log_every_s = attempt, price_per_hour, log_every_s
        self.max_minutes, self._image_size_at = max_minutes, image_size_at
        self.rows: list[dict] = []
        self._steps: list[dict] = []
        self._bar: tqdm | None = None
        self._wants_tensorboard, self._tensorboard = tensorboard and is_main, None
        self._on_terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._paid_before_s = 0.0
        self._last = dict.fromkeys(("print", "status", "curves", "warning"), -float("inf"))
        self._start_epoch()
        if is_main:
            self._paid_before_s = float(run_folder.read_status(run_dir).get("paid_s", 0.0))

    @property
    def paid_s(self) -> float:
        """Seconds this run has used up a machine, in all its attempts."""
        return self._paid_before_s + time.monotonic() - self._started

    @property
    def cost_usd(self) -> float:
        return self.paid_s / 3600 * self.price_per_hour

    @property
    def best(self) -> dict | None:
        """The row of the highest validation top-1, the earliest of equals."""
        evaluated = [row for row in self.rows if row["val_top1"] is not None]
        return max(evaluated, key=lambda row: row["val_top1"], default=None)

    def has_top1(self, target: float) -> bool:
        """Whether the best validation top-1 is at least `target` percent; 0 is no target."""
        return bool(target and self.best and self.best["val_top1"] >= target)

    def has_row(self, step: int) -> bool:
        return bool(self.rows) and self.rows[-1]["step"] >= step

    def begin(self, step: int, rows: list[dict]) -> None:
        """Take over the rows of the checkpoint of `step`, and drop what was logged after it."""
        self.rows = list(rows)
        if not self.is_main:
            return
        with self._disk_may_be_full():
            records = run_folder.read_records(self.run_dir / "log.jsonl")
            kept = [r for r in records if r["kind"] == "event" or r["step"] <= step]
            self._steps = [record for record in kept if record["kind"] == "train"]
            lines = "".join(json.dumps(record) + "\n" for record in kept)
            run_folder.replace_text(self.run_dir / "log.jsonl", lines)
            self._write_tables()
            if self._wants_tensorboard:
                self._tensorboard = TensorBoardLog(self.run_dir, step)

    def step_done(self, step: int, step_s: float, wait_s: float) -> None:
        """Book one training step: how long it took, and how long of that it waited for data."""
        self._epoch_steps += 1
        self._epoch_s += step_s
        self._wait_s += wait_s
        if self.is_main and self._on_terminal:
            with self._terminal_may_be_gone():
                self._progress_bar(step).update(self.plan.total_batch_size)

    def train_record(self, step: int, lr: float, means: dict[str, float]) -> None:
        """Log one step's own loss and hits, refresh the display, and status.json now and then."""
        if not self.is_main:
            return
        record = {"kind": "train", "step": step, "lr": lr, **means}
        self._steps.append(record)
        self._append({**record, **self._speed(), "seconds": round(self.paid_s, 1)})
        self._show(step, lr, means)
        if self._due("status", STATUS_EVERY_S):
            speed = self._speed()
            left_s = round(self._remaining_s(step, speed["images_per_s"]))
            self.status(run_folder.RUNNING, step, **speed, remaining_s=left_s)

    def epoch_row(
        self, step: int, lr: float, train: dict[str, float], val: dict[str, float] | None
    ) -> None:
        """Add the row of an epoch that ended at `step`; val is None if it was not evaluated."""
        row = {
            "epoch": round(self.plan.epoch_of(step), 4),
            "step": step,
            "seconds": round(self.paid_s, 2),
            "lr": lr,
            **{f"train_{name}": train[name] for name in ("loss", "top1", "top5")},
            **{f"val_{name}": val and val[name] for name in ("loss", "top1", "top5")},
            **self._speed(),
            "cost_usd": round(self.cost_usd, 4),
        }
        self.rows.append(row)
        self._start_epoch()
        if not self.is_main:
            return
        with self._terminal_may_be_gone():
            self._close_bar()
        self._append({"kind": "epoch", **row})
        with self._disk_may_be_full():
            self._write_tables()
        if self._due("curves", CURVES_EVERY_S):
            self._draw_curves()
        self.say(tables.epoch_line(row, self.plan.epochs))

    def event(self, step: int, text: str) -> None:
        """Say something and keep it in log.jsonl, whatever becomes of the steps around it."""
        self.say(text)
        if self.is_main:
            self._append({"kind": "event", "step": step, "text": text})

    def say(self, text: str) -> None:
        """Print a line on rank 0, above the progress bar."""
        if self.is_main:
            with self._terminal_may_be_gone():
                tqdm.write(text, file=sys.stdout)
                sys.stdout.flush()

    def status(self, state: str, step: int, **more: object) -> None:
        """Write status.json."""
        if not self.is_main:
            return
        with self._disk_may_be_full():
            run_folder.write_status(
                self.run_dir,
                state=state,
                attempt=self.attempt,
                step=step,
                stop_step=self.plan.stop_step,
                epoch=round(self.plan.epoch_of(step), 4),
                best_top1=self.best and self.best["val_top1"],
                paid_s=round(self.paid_s, 2),
                cost_usd=round(self.cost_usd, 4),
                **more,
            )

    def close(self, state: str, step: int, **more: object) -> None:
        """Write what is still to be written; for a finished run also its summary."""
        with self._terminal_may_be_gone():
            self._close_bar()
        if self.is_main and self.rows:
            self._draw_curves()
        if self._tensorboard:
            with self._disk_may_be_full():
                self._tensorboard.close()
        self.status(state, step, **({"remaining_s": 0} if state == run_folder.DONE else {}), **more)
        if state == run_folder.DONE:
            price = self.price_per_hour
            self.say(tables.summary(self.rows, self.best, self.paid_s, price, self.run_dir))

    def _speed(self) -> dict[str, float]:
        """Images per second and percent of the time waiting for data, in this epoch so far."""
        images = self._epoch_steps * self.plan.total_batch_size
        return {
            "images_per_s": round(images / max(self._epoch_s, 1e-9), 1),
            "data_wait_pct": round(100 * self._wait_s / max(self._epoch_s, 1e-9), 2),
        }

    def _start_epoch(self) -> None:
        self._epoch_steps, self._epoch_s, self._wait_s = 0, 0.0, 0.0

    def _due(self, what: str, every_s: float) -> bool:
        now = time.monotonic()
        if now - self._last[what] < every_s:
            return False
        self._last[what] = now
        return True

    def _progress_bar(self, step: int) -> tqdm:
        """The bar of the epoch that `step` belongs to."""
        if self._bar is None:
            epoch, done = divmod(step - 1, self.plan.steps_per_epoch)
            self._bar = tqdm(
                desc=f"epoch {epoch + 1}/{self.plan.epochs}{self._size(epoch)}",
                total=self.plan.steps_per_epoch * self.plan.total_batch_size,
                initial=done * self.plan.total_batch_size,
                unit="img",
                unit_scale=True,
                dynamic_ncols=True,
                mininterval=0.5,
                leave=False,
            )
        return self._bar

    def _size(self, epoch: int) -> str:
        """The size of an epoch's crops, where it grows."""
        size = self._image_size_at(epoch)
        return "" if size == self._image_size_at(self.plan.epochs) else f" {size} px"

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, step: int, lr: float, means: dict[str, float]) -> None:
        """The numbers beside the bar, or the plain line where there is no terminal."""
        speed = self._speed()
        eta = tables.clock(self._remaining_s(step, speed["images_per_s"]))
        text = (
            f"loss {means['loss']:.3f} lr {lr:.4g} waiting {speed['data_wait_pct']:.0f}% left {eta}"
        )
        if self.price_per_hour:
            text += f" {tables.dollars(self.cost_usd)}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
        elif not self._on_terminal and self._due("print", self.log_every_s):
            epoch = self.plan.epoch_of(step)
            self.say(
                f"epoch {epoch:.2f}/{self.plan.epochs}{self._size(int(epoch))} "
                f"step {step}/{self.plan.stop_step} {text} "
                f"{speed['images_per_s']:.0f} img/s"
            )

    def _remaining_s(self, step: int, images_per_s: float) -> float:
        """Seconds to the run's end at this epoch's speed, less when --max_minutes come first."""
        work = self.plan.images_left(step, self._image_size_at)
        remaining_s = work / max(images_per_s, 1e-9)
        if self.max_minutes:
            remaining_s = min(remaining_s, max(60 * self.max_minutes - self.paid_s, 0))
        return remaining_s

    def _append(self, record: dict) -> None:
        with self._disk_may_be_full(), open(self.run_dir / "log.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        if self._tensorboard and record["kind"] != "event":
            with self._disk_may_be_full():
                self._tensorboard.add(record)

    def _write_tables(self) -> None:
        run_folder.replace_text(self.run_dir / "metrics.csv", tables.as_csv(self.rows))
        run_folder.replace_text(self.run_dir / "metrics.md", tables.as_markdown(self.rows))

    def _draw_curves(self) -> None:
        import curves  # matplotlib takes half a second, which every supervisor would pay

        with self._disk_may_be_full():
            curves.draw(self.run_dir / "curves.png", self.rows, self._steps, self.title)

    @contextmanager
    def _disk_may_be_full(self) -> Iterator[None]:
        """Go on without a log line or a picture; say so once a minute."""
        try:
            yield
        except OSError as error:
            if self._due("warning", 60.0):
                self.say(f"warning: {self.run_dir}: {error.strerror}: going on without this record")

    @contextmanager
    def _terminal_may_be_gone(self) -> Iterator[None]:
        """An SSH connection that dropped takes its terminal along; training goes on in silence."""
        try:
            yield
        except OSError:
            self._on_terminal, self._bar = False, None
            sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115 (for the process's life)
