"""The learning-rate range test: train for a while at a rate that grows, and watch the loss.

It uses the model, data, batch, augmentation, precision, loss and `train_step` of the training, on
one or several ranks; afterwards everything is as it was. Smith 2015, arXiv:1506.01186. The engine
is torch-lr-finder; lr_curve.py interprets the curve.
"""

import io
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch_lr_finder import LRFinder, TrainDataLoaderIter

from resnet50.data.batch import Batch
from resnet50.data.sampling import BatchKey
from resnet50.system.interruption import Interrupted, Interruption
from resnet50.training import distributed, engine, lr_curve, optimization
from resnet50.training.build import TRAIN, Parts
from resnet50.training.plan import image_size_at, train_keys

ENDLESS = 10**9  # steps
MAX_SKIPPED_STEPS = 20  # in a row, by gradient scaling: the loss is finite, its gradient never is
SAY_EVERY_S = 10.0


@dataclass(frozen=True)
class Range:
    """Rates to try, growing by the same factor from step to step.

    Raises ValueError if that makes no sense.
    """

    start_lr: float = 1e-7
    end_lr: float = 10.0
    num_iter: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.start_lr < self.end_lr < math.inf:
            raise ValueError(
                f"--start_lr {self.start_lr:g} must be above 0 and below --end_lr {self.end_lr:g}"
            )
        if self.num_iter < lr_curve.MIN_POINTS:
            raise ValueError(
                f"--num_iter {self.num_iter} is too few for a suggestion: use "
                f"{lr_curve.MIN_POINTS} or more, 100 is usual"
            )


class ExplodedError(Exception):
    """The loss is not finite or far above what it was, or its gradient is repeatedly not finite."""


class RangeTest(LRFinder):
    """torch-lr-finder's loop around our training step.

    Its own step knows nothing of ranks: each would stop by its own loss, and the others would wait
    for it forever. Here the loss is that of all ranks, so they all decide alike. It would also
    continue after a NaN, which no comparison notices, and stop if one batch was far easier than the
    others; so this class decides where the curve ends, too.
    """

    def __init__(self, parts: Parts, stop: Interruption, say: Callable[[str], None]) -> None:
        self._parts, self._stop, self._say = parts, stop, say
        self._said_s = time.monotonic()
        scaler = torch.amp.GradScaler(
            parts.ranks.device.type, enabled=parts.state.scaler.is_enabled()
        )
        self._state = replace(
            parts.state,
            optimizer=optimization.build_optimizer(parts.state.model, parts.cfg),
            learning_rate=None,
            scaler=scaler,
            ema=None,
            epoch_sums=parts.state.epoch_sums.clone(),
            step=0,
        )
        super().__init__(
            parts.network, self._state.optimizer, criterion=None, device=parts.ranks.device
        )

    def _train_batch(self, batches: Iterator[Batch], *args: object, **kwargs: object) -> float:
        """Take one step and return the mean loss of all its images, on all ranks.

        Raises Interrupted; ExplodedError instead of returning a loss that is not finite, and after
        one that has exploded.
        """
        losses = np.array(self.history["loss"])
        if len(losses) and lr_curve.diverged(losses[-1], lr_curve.smooth(losses).min()):
            raise ExplodedError
        parts, state = self._parts, self._state
        for _ in range(MAX_SKIPPED_STEPS):
            requested = distributed.agree([int(self._stop.requested)], parts.ranks)[0]
            if requested:
                raise Interrupted
            micro_batches = list(islice(batches, parts.plan.micro_batches_per_rank))
            if isinstance(state.optimizer, optimization.DecoupledSGD):
                state.optimizer.max_lr = state.lr  # every rate is tried as the peak
            scale = state.scaler.get_scale()
            sums = engine.train_step(state, micro_batches, parts.context)
            state.step += 1
            sums = distributed.sum_over_ranks(sums, parts.ranks)
            if sums[engine.NON_FINITE]:
                raise ExplodedError
            if state.scaler.get_scale() >= scale:  # otherwise scaling has skipped this step
                return self._noted(engine.means(sums)["loss"])
        raise ExplodedError

    def _noted(self, loss: float) -> float:
        """The loss, printed now and then if there is no terminal for a bar."""
        if not sys.stderr.isatty() and time.monotonic() - self._said_s >= SAY_EVERY_S:
            self._said_s = time.monotonic()
            number = len(self.history["loss"]) + 1
            lr = self._state.lr
            self._say(f"range test: step {number}, learning rate {lr:.3g}, loss {loss:.3f}")
        return loss


class _Batches(TrainDataLoaderIter):
    """Passes our batches to torch-lr-finder, which insists on a loader's."""

    def __next__(self) -> Batch:
        return next(self._iterator)


def keys(parts: Parts) -> Iterator[BatchKey]:
    """The batches that training begins with, and so on, all at the first epoch's size."""
    size = image_size_at(parts.cfg, 0)
    for key in train_keys(parts.cfg, parts.plan, parts.ranks.rank, 0, ENDLESS):
        yield key._replace(image_size=size)


@contextmanager
def quiet(is_main: bool) -> Iterator[None]:
    """Silence torch-lr-finder's remarks; show its bar only on a terminal, and only once."""
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))
        if not (is_main and sys.stderr.isatty()):
            stack.enter_context(redirect_stderr(io.StringIO()))
        yield


def measure(
    parts: Parts, rates: Range, stop: Interruption, say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Learning rates and losses, float64 (N,), N up to rates.num_iter: the test ends early when the
    loss explodes, and before a loss that is not finite.

    Weights, buffers, averages, random numbers and the learning rate are restored when it ends.
    Every rank must call it, and gets the same figures. Raises Interrupted.
    """
    ordered = keys(parts)
    batches = parts.loader.batches(TRAIN, ordered)
    stdout = sys.stdout

    def say_aloud(text: str) -> None:
        with redirect_stdout(stdout):
            say(text)

    finder = RangeTest(parts, stop, say_aloud)
    try:
        with torch.random.fork_rng(), quiet(parts.ranks.is_main):
            finder.range_test(
                _Batches(batches),
                start_lr=rates.start_lr,
                end_lr=rates.end_lr,
                num_iter=rates.num_iter,
                smooth_f=0,
                diverge_th=math.inf,
            )
    except ExplodedError:
        say(f"range test: ended after {len(finder.history['loss'])} steps: the loss exploded")
    finally:
        finder.reset()
        parts.state.optimizer.zero_grad()
        ordered.close()
        deque(batches, maxlen=0)  # a stream must be used up before it gets other keys
    return np.array(finder.history["lr"]), np.array(finder.history["loss"])


def find_max_lr(
    parts: Parts, rates: Range, folder: Path, stop: Interruption, say: Callable[[str], None]
) -> lr_curve.Suggestions:
    """Measure, and suggest.

    Writes result.json, curve.csv and three pictures into `folder`; if the disk is full by then,
    the result is still printed. Raises ValueError if the curve does not suffice for a
    suggestion, and Interrupted.
    """
    cfg = parts.cfg
    lrs, losses = measure(parts, rates, stop, say)
    exploded = len(losses) < rates.num_iter
    # `suggest` must know of it, or it would ask for a higher --end_lr, or for more iterations.
    seen = np.append(lrs, rates.end_lr), np.append(losses, np.nan)
    batch = cfg.total_batch_size if cfg.optimizer == "sgd" else None  # the linear rule is SGD's
    suggestions = lr_curve.suggest(*(seen if exploded else (lrs, losses)), batch)
    result = {
        "max_lr": suggestions.recommended,
        "suggestions": suggestions.as_dict(),
        **asdict(rates),
        "num_losses": len(losses),
        "total_batch_size": cfg.total_batch_size,
        "image_size": image_size_at(cfg, 0),
        "optimizer": cfg.optimizer,
        "recipe": cfg.recipe,
        "data_dir": cfg.data_dir,
        "precision": parts.precision.name,
        "world_size": parts.ranks.world_size,
    }
    if parts.ranks.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # First, since it marks these files as ours (records/ownership.py).
            (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
            (folder / "curve.csv").write_text(lr_curve.as_csv(lrs, losses))
            title = f"{Path(cfg.data_dir).name}, {cfg.recipe}: batch {cfg.total_batch_size}"
            lr_curve.draw(folder, lrs, losses, suggestions, title)
        except OSError as error:
            say(f"warning: {folder} cannot be written ({error.strerror}): only printed here")
            say(f"range test: {json.dumps(result)}")
    return suggestions
