"""Every training method switched on: it runs, repeats bit for bit, and does what it says."""

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from support.methods import METHODS, STEPS, config_of
from support.pictures import STEPS_PER_EPOCH
from support.runs import assert_same, values_of
from torch import nn

import model
from resnet50.data import augment, crops, sampling
from resnet50.data import splits as data
from resnet50.data.loader import Loader
from resnet50.training import build, engine
from resnet50.training.distributed import Ranks


@dataclass
class Trace:
    """What a run left: of every step, and at its end. first: the first micro-batch."""

    start: engine.TrainState
    state: engine.TrainState
    first: object = None
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    snapshots: list[dict] = field(default_factory=list)  # the trained model's tensors
    after_8: dict = field(default_factory=dict)  # the state after eight steps


def follow(image_folder: Path, num_steps: int = STEPS, **changes: object) -> Trace:
    """Train on real images in this process; with a validation loss that never improves."""
    cfg, ranks = config_of(**changes), Ranks()
    parts = build.set_up(cfg, ranks, data.open_dataset(image_folder), first_step=0)
    state, plan = parts.state, parts.plan
    assert plan.total_steps == STEPS
    trace = Trace(copy.deepcopy(state), state)
    for step in range(num_steps):
        batches = [next(parts.batches) for _ in range(plan.micro_batches_per_rank)]
        trace.first = trace.first or batches[0]
        trace.rates.append(state.lr)
        trace.sizes.append(batches[0].images.shape[1])
        sums = engine.train_step(state, batches, parts.context)
        engine.advance(state, sums)
        trace.losses.append(engine.means(sums)["loss"])
        assert sums[engine.NON_FINITE] == 0 and sums[engine.COUNT] == 16
        trace.snapshots.append({k: v.clone() for k, v in state.model.state_dict().items()})
        if plan.ends_epoch(step + 1):
            state.learning_rate.note_val_loss(step + 1, 1.0)
        if step + 1 == 8:
            trace.after_8 = copy.deepcopy(values_of(state))
    return trace


@pytest.fixture(scope="module")
def without(image_folder) -> Trace:
    return follow(image_folder)


def has_blurs_and_no_new_weights(on: Trace, without: Trace) -> None:
    assert isinstance(on.state.model.maxpool, model.BlurMaxPool2d)
    assert_same(on.start.model.state_dict(), without.start.model.state_dict(), "start")
    assert torch.equal(on.first.images, without.first.images)


def blocks_do_not_begin_as_the_identity(on: Trace, without: Trace) -> None:
    gammas = [trace.start.model.layer1[0].bn3.weight for trace in (on, without)]
    assert gammas[0].all() and not gammas[1].any()


def the_same_images_make_another_loss(on: Trace, without: Trace) -> None:
    assert torch.equal(on.first.images, without.first.images)
    assert torch.equal(on.first.flips, without.first.flips)
    assert on.losses[0] != without.losses[0]


def the_images_differ_and_the_flips_do_not(on: Trace, without: Trace) -> None:
    differ = (on.first.images != without.first.images).flatten(1).any(1)
    assert differ.sum() >= 4 and torch.equal(on.first.flips, without.first.flips)


def starts_near_log_k_plus_one(on: Trace, without: Trace) -> None:
    assert on.start.model.fc.bias.tolist() == pytest.approx([-math.log(3)] * 3)
    assert on.losses[0] == pytest.approx(3 * math.log(4) - 2 * math.log(3), abs=0.5)
    assert on.losses[-1] < on.losses[0]


def norms_are_smaller(on: Trace, without: Trace) -> None:
    sizes = [
        sum(m.weight.norm().item() for m in t.state.model.modules() if type(m) is nn.BatchNorm2d)
        for t in (on, without)
    ]
    assert sizes[0] < sizes[1]


def the_first_step_is_the_rate(on: Trace, without: Trace) -> None:
    before, after = on.start.model.fc.weight, on.snapshots[0]["fc.weight"]
    steps = (after - before * (1 - on.rates[0] * 0.05)).abs()
    assert steps.median().item() == pytest.approx(on.rates[0], rel=0.01)


def every_fourth_step_counts(on: Trace, without: Trace) -> None:
    """16 images x 4 steps / 5 epochs: an update weighs 0.01 x 12.8."""
    assert on.state.ema.num_updates == STEPS // 4 and on.losses == without.losses
    expected = on.snapshots[3]
    for snapshot in on.snapshots[7::4]:
        expected = {
            key: torch.lerp(expected[key], value, 0.128) if value.is_floating_point() else value
            for key, value in snapshot.items()
        }
    for key, value in on.state.eval_model.state_dict().items():
        torch.testing.assert_close(value, expected[key], msg=key)


def crops_grow_between_the_two_epochs(on: Trace, without: Trace) -> None:
    by_epoch = [32, 32, 48, 48, 64]
    assert on.sizes == [size for size in by_epoch for _ in range(STEPS_PER_EPOCH)]
    assert set(without.sizes) == {32}


def stages_take_their_shares(on: Trace, without: Trace) -> None:
    """20, 40 and 40% of the compute: 2.1, 1.9 and 1.0 of the five epochs."""
    assert on.sizes[::STEPS_PER_EPOCH] == [32, 32, 48, 48, 64]


def the_same_sizes_in_another_order(on: Trace, without: Trace) -> None:
    by_epoch = on.sizes[::STEPS_PER_EPOCH]
    assert sorted(by_epoch) == [32, 32, 48, 48, 64] and by_epoch != sorted(by_epoch)


def flips_begin_as_drawn(on: Trace, without: Trace) -> None:
    assert torch.equal(on.first.images, without.first.images)
    assert torch.equal(on.first.flips, without.first.flips)
    assert on.losses[:STEPS_PER_EPOCH] == without.losses[:STEPS_PER_EPOCH]


def cosine_falls_after_an_epoch_of_warm_up(on: Trace, without: Trace) -> None:
    assert on.rates[0] == pytest.approx(0.0005) and max(on.rates) == on.rates[4] == 0.05
    assert sorted(on.rates[4:], reverse=True) == on.rates[4:] and on.rates[-1] < 0.001


def rates_fall_every_second_epoch(on: Trace, without: Trace) -> None:
    assert on.rates == pytest.approx([0.05] * 8 + [0.005] * 8 + [0.0005] * 4)


def rates_fall_without_improvement(on: Trace, without: Trace) -> None:
    """After every epoch but the first, whose evaluation is the best one."""
    assert on.rates == pytest.approx([0.05] * 8 + [5e-3] * 4 + [5e-4] * 4 + [5e-5] * 4)


def plateau_follows_the_cycle(on: Trace, without: Trace) -> None:
    assert max(on.rates[:8]) <= 0.05
    assert on.rates[8:] == pytest.approx([0.005] * 8 + [0.0005] * 4)


def rises_in_a_line(on: Trace, without: Trace) -> None:
    rising = np.diff(on.rates[:6])
    assert rising == pytest.approx([rising[0]] * 5) and on.rates[5] == max(on.rates)


def falls_as_long_as_it_rose(on: Trace, without: Trace) -> None:
    assert on.rates[5] == pytest.approx(0.05) and on.rates[10] == pytest.approx(0.05 / 25)


def momentum_moves(on: Trace, without: Trace) -> None:
    momenta = [trace.state.optimizer.param_groups[0]["momentum"] for trace in (on, without)]
    assert on.rates == without.rates and momenta == [pytest.approx(0.95), 0.9]


EFFECTS = {
    "blurpool": has_blurs_and_no_new_weights,
    "zero_init_gamma": blocks_do_not_begin_as_the_identity,
    "mixup": the_same_images_make_another_loss,
    "cutmix": the_same_images_make_another_loss,
    "mixup and cutmix": the_same_images_make_another_loss,
    "trivial_augment": the_images_differ_and_the_flips_do_not,
    "random_erasing": the_images_differ_and_the_flips_do_not,
    "bce": starts_near_log_k_plus_one,
    "label_smoothing": the_same_images_make_another_loss,
    "decay_norms": norms_are_smaller,
    "adamw": the_first_step_is_the_rate,
    "average now and then": every_fourth_step_counts,
    "progressive size": crops_grow_between_the_two_epochs,
    "stages": stages_take_their_shares,
    "stages in random order": the_same_sizes_in_another_order,
    "alternate_flips": flips_begin_as_drawn,
    "linear": rises_in_a_line,
    "three_phase": falls_as_long_as_it_rose,
    "cycle_momentum": momentum_moves,
    "warmup_cosine": cosine_falls_after_an_epoch_of_warm_up,
    "step": rates_fall_every_second_epoch,
    "plateau": rates_fall_without_improvement,
    "onecycle and plateau": plateau_follows_the_cycle,
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_repeats_to_the_bit_and_has_its_effect(name, without, image_folder):
    """20 steps, finite; the first 8 of them again; other weights than without the method."""
    on = follow(image_folder, **METHODS[name])
    again = follow(image_folder, num_steps=8, **METHODS[name])
    assert all(map(math.isfinite, on.losses)) and engine.all_finite(on.state.eval_model)
    assert on.losses[:8] == again.losses and on.rates[:8] == again.rates
    assert_same(on.after_8, again.after_8, name)
    ours, theirs = (trace.state.eval_model.state_dict() for trace in (on, without))
    assert ours.keys() == theirs.keys()
    assert not torch.equal(ours["fc.weight"], theirs["fc.weight"])
    if name in EFFECTS:
        EFFECTS[name](on, without)


BOTH = crops.Augmentation(trivial_augment=True, random_erasing=0.5)


def feed(
    split: data.Split, batches: list[list[int]], augmentation: crops.Augmentation, workers: int = 0
) -> dict[int, tuple]:
    """Pixels, flip and label of each image, by its number, in an epoch of seed 3."""
    images = crops.TrainImages(split, 3, augmentation)
    loader = Loader([images], max(map(len, batches)), 40, workers, torch.device("cpu"))
    keys = [sampling.BatchKey(2, np.array(batch), 40) for batch in batches]
    result = {}
    for key, batch in zip(keys, loader.batches(0, keys), strict=True):
        for i, index in enumerate(key.indices.tolist()):
            result[index] = (batch.images[i].numpy(), bool(batch.flips[i]), int(batch.labels[i]))
    loader.close()
    return result


def assert_same_images(one: dict[int, tuple], other: dict[int, tuple]) -> None:
    assert one.keys() == other.keys()
    for index, (pixels, flip, label) in one.items():
        assert (flip, label) == other[index][1:] and np.array_equal(pixels, other[index][0])


@pytest.mark.parametrize("size", [1, 7, 33])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_images_augmentation_depends_on_no_other(image_folder, size, workers):
    """Not on the split into batches, the neighbors, or who decodes it."""
    split, _ = data.open_dataset(image_folder)
    whole = feed(split, [list(range(len(split)))], BOTH)
    order = np.random.default_rng(size).permutation(len(split)).tolist()
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    assert_same_images(feed(split, batches, BOTH, workers), whole)


def test_a_method_leaves_crop_and_flip_and_the_other_method_as_they_were(image_folder):
    """Each is a function of what came before it and of random numbers of its own."""
    split, _ = data.open_dataset(image_folder)
    order = [list(range(len(split)))]
    plain, trivial, erased, both = (
        feed(split, order, crops.Augmentation(trivial_augment=t, random_erasing=e))
        for t, e in ((False, 0.0), (True, 0.0), (False, 0.5), (True, 0.5))
    )
    draws = sampling.uniforms(3, 2, np.arange(len(split)), crops.ERASING.stop)
    boxes = augment.erasing_boxes(draws[:, crops.ERASING], 40, 0.5)
    assert 20 < boxes.any(axis=1).sum() < 46
    for index, (pixels, flip, label) in plain.items():
        changed = augment.trivial_augment(pixels, draws[index, crops.TRIVIAL])
        for found, base, has_box in (
            (trivial, changed, False),
            (erased, pixels, True),
            (both, changed, True),
        ):
            expected = base.copy()
            if has_box:
                augment.erase(expected[None], boxes[index][None])
            assert found[index][1:] == (flip, label)
            assert np.array_equal(found[index][0], expected)


def test_alternate_flips_mirror_each_image_in_every_second_epoch(image_folder):
    split, _ = data.open_dataset(image_folder)
    images = crops.TrainImages(split, 3, crops.Augmentation(alternate_flips=True))
    loader = Loader([images], len(split), 40, 0, torch.device("cpu"))
    keys = [sampling.BatchKey(epoch, np.arange(len(split)), 40) for epoch in range(4)]
    flips = [batch.flips.clone() for batch in loader.batches(0, keys)]
    assert 0.3 < flips[0].float().mean() < 0.7
    assert torch.equal(flips[1], ~flips[0])
    assert torch.equal(flips[2], flips[0]) and torch.equal(flips[3], flips[1])
