"""A run's display: a progress bar on a terminal, else a line now and then, messages above both."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

from resnet50.config.train_config import TrainConfig
from resnet50.records import metrics
from resnet50.training.plan import Plan, image_size_at, image_size_at_step


class Throttle:
    """Tells whether something that may happen once every few seconds may happen now."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_s: dict[str, float] = {}

    def is_due(self, what: str, every_s: float) -> bool:
        now = self._clock()
        if now - self._last_s.get(what, -float("inf")) < every_s:
            return False
        self._last_s[what] = now
        return True


class Display:
    """What people see of a run on rank 0; the displays of other ranks show nothing."""

    def __init__(
        self,
        cfg: TrainConfig,
        plan: Plan,
        is_main: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """plan: may be replaced by one whose end was moved."""
        self._cfg, self.plan, self._is_main = cfg, plan, is_main
        self._has_bar = is_main and sys.stderr.isatty()
        self._bar: tqdm | None = None
        self._throttle = Throttle(clock)

    def say(self, text: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self._is_main:
            with self._terminal_may_be_gone():
                tqdm.write(text, file=sys.stdout)
                sys.stdout.flush()

    def advance(self, step: int) -> None:
        """Advance the bar by the images of a step."""
        if self._has_bar:
            with self._terminal_may_be_gone():
                self._bar_of(step).update(self.plan.total_batch_size)

    def show(
        self,
        step: int,
        lr: float,
        loss: float,
        speed: Mapping[str, float],
        left_s: float,
        cost_usd: float,
    ) -> None:
        """Show the numbers beside the bar, or print them if there is none."""
        text = (
            f"loss {loss:.3f} lr {lr:.4g} waiting {speed['data_wait_pct']:.0f}% left "
            f"{metrics.clock(left_s)}"
        )
        if self._cfg.price_per_hour:
            text += f" {metrics.dollars(cost_usd)}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
        elif not self._has_bar and self._throttle.is_due("line", self._cfg.log_every_s):
            epoch = self.plan.epoch_of(step)
            self.say(
                f"epoch {epoch:.2f}/{self.plan.num_epochs:g}{self._size(step)} "
                f"step {step}/{self.plan.stop_step} {text} "
                f"{speed['images_per_s']:.0f} img/s"
            )

    def close_bar(self) -> None:
        """Remove an epoch's bar at its end, to make room for the epoch's line."""
        with self._terminal_may_be_gone():
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def _bar_of(self, step: int) -> tqdm:
        """The bar of the epoch that `step` belongs to."""
        if self._bar is None:
            epoch, done = divmod(step - 1, self.plan.steps_per_epoch)
            self._bar = tqdm(
                desc=f"epoch {epoch + 1}/{self.plan.num_epochs:g}{self._size(step - 1)}",
                total=self.plan.steps_per_epoch * self.plan.total_batch_size,
                initial=done * self.plan.total_batch_size,
                unit="img",
                unit_scale=True,
                dynamic_ncols=True,
                mininterval=0.5,
                leave=False,
            )
        return self._bar

    def _size(self, step: int) -> str:
        """The size of a batch's crops, if it grows."""
        size = image_size_at_step(self._cfg, self.plan, step)
        return "" if size == image_size_at(self._cfg, self.plan.epochs) else f" {size} px"

    @contextmanager
    def _terminal_may_be_gone(self) -> Iterator[None]:
        """A dropped SSH connection takes the terminal with it; training continues silently."""
        try:
            yield
        except OSError:
            self._has_bar, self._bar = False, None
            sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115 (for the process's life)
