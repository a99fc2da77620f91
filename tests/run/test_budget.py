"""A budget is met: what is planned, and what happens when the host is not what was measured."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.commands import PROGRAM_PATH, REPOSITORY, finish, program_words, start

from resnet50.config import size_stages
from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.run import budget_plan, budget_start
from resnet50.run.budget import FASTER, Controller, tolerance_s
from resnet50.training.host_times import HostTimes, sizes_to_measure, slowest
from resnet50.training.plan import epoch_sizes, make_plan

FIXED = budget_plan.Fixed(paid_s=60.0, import_s=5.0, rest_s=10.0)
TIMES = HostTimes({160: 1.0, 192: 1.4}, evaluation_s=20.0, save_s=0.5, start_s=8.0)
SLOW = TIMES.faster(0.7)
given_settings = settings(max_examples=25, suppress_health_check=list(HealthCheck))


def recipe(name: str, **changes: object) -> TrainConfig:
    limits = {"max_minutes": 0.0, "device_batch_size": 16}
    return TrainConfig(**(RECIPES[name].settings | {"recipe": name} | limits | changes))


def within_budget(num_histories: int) -> tuple[list[float], list[float]]:
    """How far off the generated histories ended, and how far those that missed."""
    words = program_words("end_histories", num_histories)
    result = finish(start(words, REPOSITORY, **PROGRAM_PATH), timeout_s=1200)
    assert result.code == 0, result.err
    offs = json.loads(result.out)
    return offs, [off for off in offs if abs(off) > 1]


def test_whatever_happens_the_run_ends_with_its_budget():
    offs, missed = within_budget(100)
    assert len(offs) > 50
    assert len(missed) <= 1, missed


@pytest.mark.long
def test_of_two_thousand_histories_99_percent_end_with_their_budget():
    offs, missed = within_budget(3000)
    assert len(offs) >= 2000
    assert len(missed) <= 0.01 * len(offs), missed


def chosen(name: str, hours: float, given: dict | None = None, **changes: object):
    cfg = recipe(name, budget_hours=hours, **changes)
    return budget_plan.choose(cfg, given or {}, 300, TIMES, FIXED)


def test_the_schedule_takes_the_time_and_leaves_room_for_a_faster_machine():
    for hours in (0.5, 1.5, 2.0):
        most = {"epochs": 64}  # more than even the longest of these takes
        choice = chosen("fast16", hours, most)
        cfg, total_s = choice.cfg, 3600 * hours
        assert abs(choice.seconds - total_s) <= tolerance_s(total_s) / 2
        assert 1.05 <= cfg.num_steps / choice.likely_steps <= FASTER + 0.02
        assert (cfg.epochs - 1) * 300 < cfg.num_steps <= cfg.epochs * 300
        share = cfg.num_steps / (16 * 300)
        assert (cfg.grow_start_epoch, cfg.grow_end_epoch) == pytest.approx((11 * share, 13 * share))
        # A slower machine gets fewer steps, in the same shares of sizes.
        slower = budget_plan.choose(recipe("fast16", budget_hours=hours), most, 300, SLOW, FIXED)
        assert slower.cfg.num_steps < 0.8 * cfg.num_steps
        assert slower.likely_steps < 0.8 * choice.likely_steps


def test_no_more_than_twice_the_recipe_and_the_rest_is_left_over():
    choice = chosen("fast16", 10.0)
    assert choice.cfg.num_steps == choice.likely_steps == 32 * 300
    assert choice.left_s == pytest.approx(36000 - choice.seconds) and choice.left_s > 18000
    assert 90 < choice.affordable_epochs < 110 and choice.fits == "fast88"
    more = chosen("fast16", 10.0, {"epochs": choice.affordable_epochs})
    assert more.left_s < 600 and more.cfg.epochs == choice.affordable_epochs
    fewer = chosen("fast16", 10.0, {"epochs": 5})
    assert fewer.cfg.num_steps == 5 * 300
    assert chosen("fast16", 7.0).fits not in ("", "fast88")  # which would take longer


def test_what_is_left_over_names_no_more_epochs_than_it_buys():
    choice = chosen("fast16", 10.0)
    text = budget_start.left_over(choice.cfg, choice)
    assert (
        f"32 epochs are the most here. Give more, such as --epochs {choice.affordable_epochs}"
        in text
    )
    less_than_one = replace(choice, affordable_epochs=choice.cfg.epochs, fits="")
    text = budget_start.left_over(choice.cfg, less_than_one)
    assert text.endswith("are left over: 32 epochs are the most here")
    cfg = replace(choice.cfg, epochs=1, num_steps=9)
    one = replace(less_than_one, cfg=cfg, affordable_epochs=1, fits="fast32")
    text = budget_start.left_over(choice.cfg, one)
    assert text.endswith("1 epoch is the most here. Give --recipe fast32, which would fit")


def test_a_warm_up_gets_shorter_and_no_longer_and_a_plateau_goes():
    warmups = []
    for hours in (0.5, 5.0):
        choice = chosen("mild28", hours)
        passed_over = choice.cfg.num_steps / choice.likely_steps
        warmups.append(choice.cfg.warmup_epochs / passed_over)  # as the run will take it
    assert warmups[0] < 8 and warmups[1] == pytest.approx(8)
    choice = chosen("onecycle_plateau", 2.0)
    assert choice.cfg.plateau_epochs == 0 and choice.cfg.num_steps > 0


def test_evaluations_that_would_miss_the_end_are_left_out_unless_given():
    slow = replace(TIMES, evaluation_s=100.0)
    cfg = recipe("fast16", budget_hours=2.0)
    assert budget_plan.choose(cfg, {}, 300, slow, FIXED).cfg.eval_every_epochs == 0
    given = {"eval_every_epochs": 1}
    assert budget_plan.choose(cfg, given, 300, slow, FIXED).cfg.eval_every_epochs == 1
    assert chosen("fast16", 2.0).cfg.eval_every_epochs == 1


@given_settings
@given(
    st.sampled_from(sorted(RECIPES)),
    st.floats(1, 1e4),
    st.integers(2, 5000),
    st.floats(0.001, 30),
    st.floats(0, 100),
)
def test_the_least_that_is_named_would_do(name, total_s, steps_per_epoch, step_s, evaluation_s):
    times = HostTimes({64: step_s / 4, 224: step_s}, evaluation_s, 0.2, 5.0)
    cfg = recipe(name, budget_hours=total_s / 3600)
    try:
        budget_plan.choose(cfg, {}, steps_per_epoch, times, FIXED)
    except ValueError as error:
        assert f"is too little for {name} on this machine" in str(error)
        least = float(str(error).rpartition("--budget_hours ")[2])
        assert least > cfg.budget_hours
        # The next start pays for the one that was refused, and measures again, a little slower.
        enough, slower = replace(cfg, budget_hours=least), times.faster(1 / 1.03)
        measuring_s = max(budget_plan.MEASURING * enough.budget_s, FIXED.paid_s - FIXED.import_s)
        paid_s = FIXED.paid_s + 1 + 1.03 * FIXED.import_s + measuring_s
        again = replace(FIXED, paid_s=paid_s)
        choice = budget_plan.choose(enough, {}, steps_per_epoch, slower, again)
        most = 2 * RECIPES[name].settings["epochs"] * steps_per_epoch
        assert choice.cfg.num_steps >= min(budget_plan.LEAST_STEPS - 1, most)


@pytest.mark.parametrize("stages", ["96:20,192:80", "96:5,128:20,192:75"])
def test_with_stages_each_keeps_an_epoch(stages):
    """Refused or planned, but never for a run so short that a stage would have none."""
    changes = {"size_stages": stages, "start_image_size": 0}
    for hours in (0.05, 0.5, 2.0):
        try:
            cfg = chosen("fast16", hours, **changes).cfg
        except ValueError as error:
            assert "is too little for fast16" in str(error)
            least = float(str(error).rpartition("--budget_hours ")[2])
            cfg = chosen("fast16", least, **changes).cfg
        assert len(set(epoch_sizes(cfg))) == stages.count(":")


def test_from_the_fewest_epochs_on_no_stage_is_without_one():
    for text in ("224:100", "96:20,192:80", "96:50,160:25,224:25", "64:1,96:98.5,128:0.5"):
        stages = size_stages.parse(text)
        fewest = size_stages.fewest_epochs(stages)
        has_all = [
            {side for side, _ in stages} == set(size_stages.epoch_sizes(stages, epochs))
            for epochs in range(max(fewest - 1, 1), fewest + 300)
        ]
        assert all(has_all[fewest > 1 :]) and (fewest == 1 or not has_all[0])
    assert size_stages.fewest_epochs([]) == 0


def test_sizes_between_measured_ones_are_interpolated_by_area():
    times = HostTimes({100: 1.0, 200: 2.5})
    assert times.step_at(100) == 1 and times.step_at(200) == 2.5
    assert times.step_at(150) == pytest.approx(1 + 1.5 * (150**2 - 100**2) / (200**2 - 100**2))
    assert 1 * 50**2 / 100**2 <= times.step_at(50) < 1
    assert 2.5 < times.step_at(300) <= 2.5 * 300**2 / 200**2
    assert HostTimes({100: 1.0}).step_at(200) == 4
    assert HostTimes({100: 2.0, 200: 1.9}).step_at(400) == 1.9  # noise: never faster than smaller


def test_at_most_four_sizes_are_measured_the_largest_first():
    for name, sizes in (("fast16", [192, 160]), ("onecycle50", [224])):
        assert sizes_to_measure(epoch_sizes(recipe(name))) == sizes
    mild = sizes_to_measure(epoch_sizes(recipe("mild28")))
    assert len(mild) == 4 and mild[:2] == [176, 88]


def test_ranks_wait_for_the_slowest():
    one = HostTimes({64: 1.0, 128: 2.0}, 3.0, 0.5, 4.0)
    other = HostTimes({128: 2.5}, 2.0, 0.0, 5.0)
    assert slowest([one, other]) == HostTimes({128: 2.5}, 3.0, 0.5, 5.0)
    assert HostTimes.from_json(one.to_json()) == one
    with pytest.raises(ValueError, match="not the times of a host"):
        HostTimes.from_json({"step_s": {}})


def test_what_was_learned_goes_on_and_what_is_lost_is_learned_anew():
    cfg = recipe("tiny", budget_hours=1.0, num_steps=600, epochs=6)
    plan = make_plan(cfg, 1600)
    controller = Controller(cfg, plan, 3600.0, None)
    paid_s = 100.0
    for step in range(40):  # of 10 s, where 600 would take 6000 s
        controller.observe(step, plan.course, paid_s)
        paid_s += 10
    again = Controller(cfg, plan, 3600.0, None)
    assert again.decide(40, plan.course, paid_s, 41) is None
    again.learn(controller.to_json())
    event = again.decide(40, plan.course, paid_s, 41)
    assert event.step == 41 and 300 < event.end_step < 360
    empty = again.decide(40, plan.course, 3700.0, 41)
    assert (empty.step, empty.end_step) == (41, 42)
