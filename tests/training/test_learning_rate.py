"""The learning rate of every step: torch's own schedules, and the same after any interruption."""

import dataclasses
import io
import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.runs import assert_same
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from resnet50.config.train_config import TrainConfig
from resnet50.training.learning_rate import LearningRate, LearningRateSettings, rate_at

pytestmark = pytest.mark.filterwarnings("error")

SETTINGS = LearningRateSettings(
    schedule="onecycle",
    max_lr=0.5,
    curve_steps=30,
    total_steps=30,
    steps_per_epoch=5,
    warmup_steps=0,
    warmup_factor=0.01,
    min_lr=0.0,
    pct_start=0.3,
    anneal_strategy="cos",
    three_phase=False,
    div_factor=25.0,
    final_div_factor=1e4,
    cycle_momentum=False,
    step_epochs=2,
    step_factor=0.1,
    plateau_lr=0.02,
    plateau_factor=0.5,
    plateau_patience=1,
)
ONE_ROUNDING = 1 + 2**-51  # OneCycleLR interpolates, which may end that far beside the end

SCHEDULES = next(
    item.metadata["choices"] for item in fields(TrainConfig) if item.name == "schedule"
)


def settings(**changes: object) -> LearningRateSettings:
    return dataclasses.replace(SETTINGS, **changes)


def make_optimizer(kind: str = "sgd", lr: float = 123.0) -> torch.optim.Optimizer:
    """Two groups, since all are to have the same rate. The rate given here must not matter."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "weight_decay": w} for w in (0, 1)]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(0.8, 0.99))
    return torch.optim.SGD(groups, lr=lr, momentum=0.7)


def observe(optimizer: torch.optim.Optimizer) -> tuple:
    """What the next step is taken with: rate and momentum, or rate and betas."""
    first, second = (
        (group["lr"], group.get("momentum"), group.get("betas")) for group in optimizer.param_groups
    )
    assert first == second
    return first


def rates_of(s: LearningRateSettings) -> list[float]:
    """The rates of a curve's batches."""
    optimizer = make_optimizer()
    learning_rate = LearningRate(optimizer, s)
    rates = []
    for step in range(s.curve_steps):
        rates.append(observe(optimizer)[0])
        assert learning_rate.lr == rates[-1]
        optimizer.step()
        learning_rate.advance(step + 1)
    return rates


def rates_of_torch(scheduler: LRScheduler, num_steps: int) -> list[float]:
    rates = [scheduler.get_last_lr()[0]]
    while len(rates) < num_steps:  # one more would divide by zero in some one-cycles
        scheduler.optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


def has_no_zero_division(s: LearningRateSettings) -> bool:
    return s.pct_start * s.curve_steps != 1


one_cycles = st.builds(
    settings,
    curve_steps=st.integers(1, 60),
    total_steps=st.just(60),
    max_lr=st.floats(1e-6, 10),
    pct_start=st.floats(0, 1),
    anneal_strategy=st.sampled_from(["cos", "linear"]),
    three_phase=st.booleans(),
    div_factor=st.floats(1, 1e3),
    final_div_factor=st.floats(1, 1e6),
).filter(has_no_zero_division)


@given(one_cycles)
def test_one_cycle_is_torchs_at_every_step(s):
    names = ("pct_start", "anneal_strategy", "three_phase", "div_factor", "final_div_factor")
    reference = OneCycleLR(
        make_optimizer(),
        max_lr=s.max_lr,
        total_steps=s.curve_steps,
        cycle_momentum=False,
        **{name: getattr(s, name) for name in names},
    )
    rates = rates_of(s)
    assert rates == rates_of_torch(reference, s.curve_steps)
    assert min(rates) >= 0 and max(rates) <= s.max_lr * ONE_ROUNDING


@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_one_cycle_rises_to_the_peak_falls_to_its_end_and_stays_there(strategy):
    s = settings(curve_steps=90, total_steps=90, anneal_strategy=strategy)
    rates = rates_of(s)
    assert rates[0] == pytest.approx(0.5 / 25) and rates[-1] == pytest.approx(0.5 / 25e4)
    assert rates.index(max(rates)) == 0.3 * 90 - 1 and max(rates) == pytest.approx(0.5)
    optimizer = make_optimizer()
    learning_rate = LearningRate(optimizer, s)
    for step in range(1, 93):  # two more than there are
        optimizer.step()
        learning_rate.advance(step)
    assert learning_rate.lr == observe(optimizer)[0] == rates[-1]


@given(one_cycles, st.sampled_from(SCHEDULES[:3]), st.integers(0, 10**6))
def test_the_rate_of_any_step_needs_none_before_it(s, schedule, number):
    s = dataclasses.replace(s, schedule=schedule)
    step = number % s.curve_steps
    assert rate_at(s, step) == pytest.approx(rates_of(s)[step], rel=1e-12)
    assert rate_at(s, s.curve_steps) == s.plateau_lr


@given(st.integers(1, 4), st.integers(1, 4), st.floats(0.05, 1), st.integers(1, 60))
def test_steps_are_torchs_stepped_once_an_epoch(step_epochs, steps_per_epoch, factor, curve_steps):
    s = settings(
        schedule="step",
        step_epochs=step_epochs,
        steps_per_epoch=steps_per_epoch,
        step_factor=factor,
        curve_steps=curve_steps,
    )
    reference = StepLR(make_optimizer(lr=0.5), step_size=step_epochs, gamma=factor)
    by_epoch = rates_of_torch(reference, curve_steps // steps_per_epoch + 1)
    expected = [by_epoch[step // steps_per_epoch] for step in range(curve_steps)]
    assert rates_of(s) == pytest.approx(expected, rel=1e-12)


@given(st.integers(1, 20), st.floats(1e-3, 1), st.integers(1, 2))
def test_warm_up_multiplies_steps_without_moving_them(warmup_steps, factor, step_epochs):
    warm = settings(
        schedule="step", warmup_steps=warmup_steps, warmup_factor=factor, step_epochs=step_epochs
    )
    cold = rates_of(dataclasses.replace(warm, warmup_steps=0))
    rise = LinearLR(make_optimizer(lr=1.0), start_factor=factor, total_iters=warmup_steps)
    expected = [rate * f for rate, f in zip(cold, rates_of_torch(rise, 30), strict=True)]
    assert rates_of(warm) == pytest.approx(expected, rel=1e-9)


@given(st.integers(1, 20), st.integers(1, 300), st.floats(1e-3, 1), st.floats(0, 0.5))
def test_cosine_after_warm_up_is_torchs(warmup_steps, rest, factor, min_lr):
    """At all steps of curves this short: torch multiplies each rate from the last, and its error
    grows towards the end with the square of the length, to 1e-9 at about 10 000 steps."""
    s = settings(
        schedule="warmup_cosine",
        warmup_steps=warmup_steps,
        warmup_factor=factor,
        min_lr=min_lr,
        curve_steps=warmup_steps + rest,
    )
    optimizer = make_optimizer(lr=0.5)
    rise = LinearLR(optimizer, start_factor=factor, total_iters=warmup_steps)
    fall = CosineAnnealingLR(optimizer, T_max=rest, eta_min=min_lr)
    reference = SequentialLR(optimizer, [rise, fall], milestones=[warmup_steps])
    rates = rates_of(s)
    assert rates == pytest.approx(rates_of_torch(reference, s.curve_steps), rel=1e-9, abs=0)
    assert max(rates) <= 0.5 * ONE_ROUNDING and min(rates) >= 0
    assert rates[warmup_steps] == 0.5


def test_a_long_cosine_is_accurate_to_its_last_step():
    s = settings(schedule="warmup_cosine", curve_steps=4000, max_lr=1.0)
    # 1 - cos(x) = 2 sin(x / 2)**2, and x is small.
    assert rates_of(s)[-1] == pytest.approx(math.sin(math.pi / 8000) ** 2, rel=1e-14, abs=0)


@given(st.sampled_from(SCHEDULES[1:]), st.integers(0, 40), st.floats(0, 1), st.floats(0, 0.5))
def test_rates_stay_between_zero_and_the_peak(schedule, warmup_steps, factor, min_lr):
    s = settings(schedule=schedule, warmup_steps=warmup_steps, warmup_factor=factor, min_lr=min_lr)
    rates = rates_of(s)
    assert min(rates) >= 0 and max(rates) <= 0.5 * ONE_ROUNDING
    assert rates[0] == pytest.approx(0.5 * factor if warmup_steps else 0.5)
    rising = rates[: warmup_steps + 1]
    assert rising == sorted(rising) or schedule == "step"


def hand_written_plateau(s: LearningRateSettings, losses: list[float]) -> list[float]:
    """The rate after every evaluation."""
    lr, best, num_bad, rates = s.plateau_lr, math.inf, 0, []
    for loss in losses:
        if loss < best * (1 - 1e-4):
            best, num_bad = loss, 0
        else:
            num_bad += 1
        if num_bad > s.plateau_patience:
            num_bad = 0
            if lr - lr * s.plateau_factor > 1e-8:
                lr *= s.plateau_factor
        rates.append(lr)
    return rates


def test_the_rate_falls_when_validation_stops_improving():
    s = settings(curve_steps=3, total_steps=99)
    optimizer = make_optimizer()
    learning_rate = LearningRate(optimizer, s)
    for step in range(1, 4):
        optimizer.step()
        learning_rate.advance(step)
        assert not learning_rate.note_val_loss(step, 0.0)  # the curve's, not a best to beat
    rates, fell = [], []
    losses = [2.0, 1.0, 0.99995, 1.5, 0.5, 0.6, 0.6, 0.4]  # the third is better by too little
    for step, loss in enumerate(losses, start=4):
        learning_rate.advance(step)
        fell.append(learning_rate.note_val_loss(step, loss))
        rates.append(observe(optimizer)[0])
        assert learning_rate.lr == rates[-1]
    assert rates == [0.02] * 3 + [0.01] * 3 + [0.005] * 2 == hand_written_plateau(s, losses)
    assert [i for i, did in enumerate(fell) if did] == [3, 6]


@given(
    st.integers(0, 4),
    st.lists(st.floats(0, 8), max_size=30),
    st.integers(0, 3),
    st.floats(0.01, 0.99),
)
def test_plateau_alone_follows_a_warm_up_of_any_length(warmup_steps, losses, patience, factor):
    s = settings(
        schedule="plateau",
        warmup_steps=warmup_steps,
        curve_steps=warmup_steps,
        total_steps=99,
        plateau_lr=0.5,
        plateau_patience=patience,
        plateau_factor=factor,
    )
    optimizer = make_optimizer()
    learning_rate = LearningRate(optimizer, s)
    assert not learning_rate.note_val_loss(0, 1.0)
    for step in range(1, warmup_steps + 1):
        assert learning_rate.lr < 0.5
        optimizer.step()
        learning_rate.advance(step)
    assert observe(optimizer)[0] == learning_rate.lr == 0.5
    rates, before = [], 0.5
    for step, loss in enumerate(losses, start=warmup_steps + 1):
        assert learning_rate.note_val_loss(step, loss) == (learning_rate.lr < before)
        before = learning_rate.lr
        rates.append(before)
    assert rates == hand_written_plateau(s, losses)


class Run:
    """A run as training makes it: batches, an evaluation every third step, saved and resumed."""

    def __init__(self, kind: str, s: LearningRateSettings, losses: list[float]) -> None:
        self.kind, self.settings, self.losses = kind, s, losses
        self.step, self.seen = 0, []
        self._begin()

    def _begin(self) -> None:
        self.optimizer = make_optimizer(self.kind)
        self.learning_rate = LearningRate(self.optimizer, self.settings)

    def go(self, stop_step: int) -> None:
        for step in range(self.step + 1, stop_step + 1):
            self.seen.append(observe(self.optimizer))
            self.optimizer.step()
            self.learning_rate.advance(step)
            if step % 3 == 0:
                self.seen.append(self.learning_rate.note_val_loss(step, self.losses[step // 3]))
            self.step = step

    def save_and_resume(self) -> None:
        file = io.BytesIO()
        torch.save([self.optimizer.state_dict(), self.learning_rate.state_dict()], file)
        file.seek(0)
        optimizer_state, state = torch.load(file, weights_only=True)
        self._begin()
        self.optimizer.load_state_dict(optimizer_state)
        self.learning_rate.load_state_dict(state)
        assert self.learning_rate.lr == observe(self.optimizer)[0]


@st.composite
def whole_runs(draw: st.DrawFn) -> LearningRateSettings:
    """Any schedule, with or without a plateau phase behind it; 30 steps at most."""
    schedule = draw(st.sampled_from(SCHEDULES))
    curve_steps = draw(st.integers(0 if schedule == "plateau" else 1, 25))
    warmup_steps = curve_steps if schedule == "plateau" else draw(st.integers(0, curve_steps))
    return settings(
        schedule=schedule,
        curve_steps=curve_steps,
        total_steps=max(1, curve_steps + draw(st.integers(0, 5) | st.integers(20, 30))),
        warmup_steps=warmup_steps,
        pct_start=draw(st.sampled_from([0.0, 0.37, 1 - 1 / 64])),
        anneal_strategy=draw(st.sampled_from(["cos", "linear"])),
        three_phase=draw(st.booleans()),
        cycle_momentum=draw(st.booleans()),
        plateau_patience=draw(st.integers(0, 2)),
    )


@given(whole_runs(), st.sampled_from(["sgd", "adamw"]), st.data())
def test_a_run_resumed_anywhere_goes_on_bit_for_bit(s, kind, data):
    losses = data.draw(st.lists(st.sampled_from([1.0, 0.9, 0.5]), min_size=20, max_size=20))
    cuts = data.draw(st.lists(st.integers(0, s.total_steps), min_size=1, max_size=3))
    whole, parts = Run(kind, s, losses), Run(kind, s, losses)
    whole.go(s.total_steps)
    for cut in sorted(cuts):
        parts.go(cut)
        parts.save_and_resume()
    parts.go(s.total_steps)
    assert parts.seen == whole.seen
    assert_same(parts.learning_rate.state_dict(), whole.learning_rate.state_dict(), "state")
    assert observe(parts.optimizer) == observe(whole.optimizer)


def test_loading_an_earlier_state_takes_a_run_back_out_of_the_plateau():
    run = Run("sgd", settings(curve_steps=4, total_steps=9), [1.0] * 4)
    states = run.optimizer.state_dict(), run.learning_rate.state_dict()
    run.go(9)
    seen, run.seen, run.step = run.seen, [], 0
    run.optimizer.load_state_dict(states[0])
    run.learning_rate.load_state_dict(states[1])
    assert run.learning_rate.lr == observe(run.optimizer)[0]
    run.go(9)
    assert run.seen == seen


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_momentum_moves_against_the_rate_and_returns_for_the_plateau(kind, three_phase):
    s = settings(total_steps=32, cycle_momentum=True, three_phase=three_phase)
    reference = make_optimizer(kind)
    scheduler = OneCycleLR(reference, max_lr=0.5, total_steps=30, three_phase=three_phase)
    optimizer = make_optimizer(kind)
    learning_rate = LearningRate(optimizer, s)
    momenta = []
    for step in range(1, 31):
        assert observe(optimizer) == observe(reference)
        _, momentum, betas = observe(optimizer)
        momenta.append(betas[0] if kind == "adamw" else momentum)
        for each in (optimizer, reference):
            each.step()
        scheduler.step()
        learning_rate.advance(step)
    assert momenta[0] == 0.95 and min(momenta) == momenta[8] == pytest.approx(0.85)
    own = observe(make_optimizer(kind))[1:]
    assert observe(optimizer) == (0.02, *own)  # the plateau phase has begun


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_skipped_first_step_gives_no_warning(schedule):
    s = settings(schedule=schedule, total_steps=40)
    learning_rate = LearningRate(make_optimizer(), s)
    for step in range(1, 41):  # the optimizer never steps, as if each step had overflowed
        learning_rate.advance(step)


def test_a_step_left_out_is_noticed():
    learning_rate = LearningRate(make_optimizer(), SETTINGS)
    with pytest.raises(AssertionError, match="step 2 is not the next one"):
        learning_rate.advance(2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pct_start": 0.1, "curve_steps": 10}, "pct_start 0.1 is exactly one of 10 steps"),
        (
            {"total_steps": 40, "plateau_factor": 1.0},
            "--plateau_factor 1.0: must be between 0 and 1",
        ),
    ],
)
def test_what_torch_refuses_obscurely_or_late_is_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        LearningRate(make_optimizer(), settings(**changes))
