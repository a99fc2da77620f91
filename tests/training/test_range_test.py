"""The range test: the training's own steps, one curve on all ranks, no trace left.

torchrun also starts this file as a script, for what two ranks must agree on.
"""

import copy
import csv
import json
import math
import sys
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import PROGRAM_PATH, run, torchrun_words
from support.runs import assert_same, values_of

from resnet50.config.train_flags import Request
from resnet50.data.sampling import BatchKey
from resnet50.data.splits import open_dataset
from resnet50.run.resolve import resolve
from resnet50.system.interruption import Interrupted
from resnet50.training import build, distributed, engine, losses, range_test
from resnet50.training.build import TRAIN, Parts
from resnet50.training.distributed import Ranks
from resnet50.training.plan import train_keys
from resnet50.training.range_test import Range

MILD, EXPLOSIVE, MIDDLE = Range(1e-4, 0.05, 25), Range(1e-4, 1e4, 60), Range(1e-4, 0.3, 40)
NEVER = 10**9


class StopAfter:
    """Stands in for Interruption, without signal handlers: set after being read `looks` times."""

    def __init__(self, looks: int = NEVER) -> None:
        self.looks = looks

    @property
    def requested(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def set_up(data_dir: Path, ranks: Ranks = Ranks(), **more: object) -> Parts:  # noqa: B008
    """The tiny recipe's parts, its loaders not yet at work."""
    settings = {"recipe": "tiny", "data_dir": str(data_dir), "amp": "fp32", "max_lr": 0.05}
    cfg = resolve(Request(settings | more, fresh=True), ranks.world_size)
    return build.set_up(cfg, ranks, open_dataset(data_dir))


def measure(parts: Parts, rates: Range, looks: int = NEVER) -> list[list[float]]:
    found = range_test.measure(parts, rates, StopAfter(looks), lambda text: None)
    return [values.tolist() for values in found]


def nan_from_step(step: int, micro_batches: int):
    """losses_of, NaN from a step on, counted from 1."""
    clean, calls = losses.losses_of, count(1)

    def poisoned(*args: object) -> torch.Tensor:
        is_late = next(calls) > (step - 1) * micro_batches
        return clean(*args) * (math.nan if is_late else 1.0)

    return poisoned


def be_a_rank(data_dir: Path, out: Path) -> None:
    """Under torchrun: leave what this rank measures in OUT/RANK.json."""
    ranks = distributed.read_ranks()
    parts = set_up(data_dir, ranks)
    found = {"mild": measure(parts, MILD), "explosive": measure(parts, EXPLOSIVE)}
    try:  # the signal comes to one of the ranks alone
        measure(parts, MILD, looks=5 if ranks.rank == 1 else NEVER)
    except Interrupted:
        found["interrupted"] = True
    if ranks.rank == 1:  # and so does the NaN
        losses.losses_of = nan_from_step(24, 1)
    found["poisoned"] = measure(parts, MILD)
    (out / f"{ranks.rank}.json").write_text(json.dumps(found))
    distributed.disconnect()


def test_two_ranks_have_one_curve_and_end_as_one(image_folder, tmp_path):
    """Though each has other images, and only one of them a NaN or a signal."""
    result = run(torchrun_words(2, __file__, image_folder, tmp_path), tmp_path, **PROGRAM_PATH)
    assert result.code == 0, result.err
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["interrupted"]
    assert 1 < len(first["explosive"][1]) < EXPLOSIVE.num_iter
    lost = first["poisoned"][1]
    assert len(lost) == 23 and lost == first["mild"][1][:23]
    alone = set_up(image_folder)
    assert alone.plan.micro_batches_per_rank == 2
    rates = np.geomspace(MILD.start_lr, MILD.end_lr, MILD.num_iter)
    assert first["mild"][0] == pytest.approx(rates, rel=1e-6)  # to the last
    for ours, theirs in zip(measure(alone, MILD), first["mild"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_nan_ends_the_curve_before_it(image_folder, tmp_path, monkeypatch):
    parts, said = set_up(image_folder), []
    lrs, clean = measure(parts, MIDDLE)
    monkeypatch.setattr(losses, "losses_of", nan_from_step(30, 2))
    found = range_test.find_max_lr(parts, MIDDLE, tmp_path, StopAfter(), said.append)
    assert said == ["range test: ended after 29 steps: the loss exploded"]
    with open(tmp_path / "curve.csv") as file:
        rows = [[float(text) for text in row.values()] for row in csv.DictReader(file)]
    assert [row[1:3] for row in rows] == [list(pair) for pair in zip(lrs, clean, strict=True)][:29]
    assert np.isfinite(rows).all()
    rates = (found.minimum_tenth, found.valley, found.anchor, found.recommended)
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
    assert not any("raise --end_lr" in text for text in found.warnings)  # there is nothing beyond


@pytest.mark.parametrize("step", [1, 10])
def test_a_loss_that_explodes_too_soon_asks_for_a_lower_start(
    image_folder, tmp_path, monkeypatch, step
):
    monkeypatch.setattr(losses, "losses_of", nan_from_step(step, 2))
    parts = set_up(image_folder)
    with pytest.raises(ValueError, match="lower --start_lr"):
        range_test.find_max_lr(parts, MILD, tmp_path, StopAfter(), lambda text: None)
    assert not list(tmp_path.iterdir())


def train_on(parts: Parts, first: int, last: int) -> list[float]:
    """Training's steps from first up to, but without, last; the loss of each."""
    keys = train_keys(parts.cfg, parts.plan, parts.ranks.rank, first, last)
    batches, lost = parts.loader.batches(TRAIN, keys), []
    for _ in range(first, last):
        micro_batches = list(islice(batches, parts.plan.micro_batches_per_rank))
        sums = engine.train_step(parts.state, micro_batches, parts.context)
        engine.advance(parts.state, sums)
        lost.append(engine.means(sums)["loss"])
    return lost


def snapshot(parts: Parts) -> dict[str, object]:
    """All that a step changes or depends on."""
    state = parts.state
    gradients = [parameter.grad for parameter in state.model.parameters()]
    values = {**values_of(state), "lr": state.lr, "sums": state.epoch_sums, "grad": gradients}
    return copy.deepcopy(values) | {"random": torch.get_rng_state()}


@pytest.mark.parametrize(
    "rates, looks, num_workers",
    [(MILD, NEVER, 0), (EXPLOSIVE, NEVER, 2), (MILD, 7, 2)],
    ids=["to the end", "exploded", "interrupted"],
)
def test_a_range_test_leaves_no_trace(image_folder, rates, looks, num_workers):
    """Even in the middle of training, which then continues like another that had no test."""
    more = {"ema_decay": 0.9, "nesterov": True, "clip_grad_norm": 5.0, "mixup_alpha": 0.2}
    one, other = (
        set_up(image_folder, **more, num_workers=number, epochs=3) for number in (num_workers, 0)
    )
    assert train_on(one, 0, 5) == train_on(other, 0, 5)
    before = snapshot(one)
    if looks == NEVER:
        assert (len(measure(one, rates)[0]) < rates.num_iter) == (rates is EXPLOSIVE)
    else:
        with pytest.raises(Interrupted):
            measure(one, rates, looks)
    assert_same(snapshot(one), before, "after the range test")
    assert train_on(one, 5, 11) == train_on(other, 5, 11)
    assert_same(snapshot(one), snapshot(other), "at the end")
    one.loader.close()


@pytest.mark.parametrize(
    "more",
    [
        {"nesterov": True, "clip_grad_norm": 1.0, "label_smoothing": 0.1, "momentum": 0.8},
        {"optimizer": "adamw", "mixup_alpha": 0.2, "device_batch_size": 16, "loss": "bce"},
        {"decoupled_weight_decay": True, "weight_decay": 0.1, "trivial_augment": True},
    ],
    ids=["sgd", "adamw", "decoupled"],
)
def test_its_steps_are_the_trainings(image_folder, more):
    """At a rate that hardly grows: the losses of training with a schedule that stays at it."""
    lr = 0.01
    flat = {"max_lr": lr, "schedule": "warmup_cosine", "min_lr": lr, "epochs": 6}
    lost = train_on(set_up(image_folder, **more, **flat), 0, 20)
    parts = set_up(image_folder, **more, max_lr="auto")
    assert measure(parts, Range(lr, math.nextafter(lr, 1), 20))[1] == lost


def test_growing_images_stay_as_small_as_training_begins(image_folder):
    sizes = {"start_image_size": 32, "image_size": 64, "grow_end_epoch": 2.0}
    parts = set_up(image_folder, **sizes, eval_resize_size=64, epochs=4)
    training = train_keys(parts.cfg, parts.plan, parts.ranks.rank, 0, 16)
    for ours, theirs in zip(islice(range_test.keys(parts), 32), training, strict=True):
        assert isinstance(ours, BatchKey) and ours.image_size == 32
        assert ours.epoch == theirs.epoch and (ours.indices == theirs.indices).all()
    assert len(measure(parts, MILD)[1]) == MILD.num_iter


def test_fp16s_skipped_steps_are_not_points_and_endless_skipping_ends(image_folder):
    """Gradient scaling leaves steps out at first, when its factor is too large."""
    parts = set_up(image_folder)
    parts.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    parts.precision = replace(parts.precision, dtype=torch.bfloat16)
    assert len(measure(parts, MILD)[1]) == MILD.num_iter
    hook = parts.state.model.fc.weight.register_hook(lambda gradient: gradient * math.inf)
    assert measure(parts, MILD) == [[], []]
    hook.remove()


if __name__ == "__main__":
    be_a_rank(Path(sys.argv[1]), Path(sys.argv[2]))
