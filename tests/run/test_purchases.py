"""What bench.py says of $5, $10 and $20."""

import math

import pytest

from resnet50.config.recipes import IMAGENET, RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.run import budget_plan, purchases
from resnet50.training.host_times import HostTimes

PRICE = 1.624
MEASURED = TrainConfig(**RECIPES["fast16"].settings | {"recipe": "fast16", "price_per_hour": PRICE})
TIMES = HostTimes({160: 1.6, 192: 2.2}, evaluation_s=20.0, start_s=20.0)  # batches of 4096


def rows(**changes: object) -> list[dict]:
    words = {"num_train": 1_281_167, "num_classes": 1000} | changes
    return purchases.purchases(MEASURED, TIMES, 5.0, **words)


def test_on_imagenet_every_recipe_has_its_rows():
    found = rows()
    assert [(row["recipe"], row["budget_usd"]) for row in found] == [
        (name, usd) for name in IMAGENET for usd in purchases.USD
    ]
    for row in found:
        steps_per_epoch = 1_281_167 // RECIPES[row["recipe"]].settings["total_batch_size"]
        assert row["steps"] > 0 and row["cost_usd"] <= row["budget_usd"]
        assert row["epochs"] == pytest.approx(row["steps"] / steps_per_epoch, abs=0.01)
        assert row["cost_usd"] == pytest.approx(row["hours"] * PRICE)
    text = purchases.describe(found, PRICE)
    assert text.startswith("projection: ") and "73.8% in 16 epochs (fast16)" in text
    assert all(len(line) < 120 for line in text.splitlines())


def test_the_same_images_take_the_same_time_in_any_batch():
    by_name = {(row["recipe"], row["budget_usd"]): row for row in rows()}
    # 224 px beside 192: nearly in proportion to the area.
    fast, one_cycle = by_name["fast88", 20.0], by_name["onecycle50", 20.0]
    ratio = fast["epochs"] / one_cycle["epochs"]
    assert 1 < ratio < 224**2 / 160**2


def test_the_reference_is_the_nearest_of_the_same_family():
    cfg = TrainConfig(**RECIPES["fast16"].settings)
    for epochs, name in ((5, "fast16"), (20, "fast16"), (25, "fast32"), (60, "fast88")):
        assert purchases.nearest(cfg, epochs)["recipe"] == name
    tiny = TrainConfig(**RECIPES["tiny"].settings)
    assert purchases.nearest(tiny, 2) is None


def test_elsewhere_only_the_measured_recipe_and_without_a_price_none():
    few = rows(num_train=20_000, num_classes=10)
    assert {row["recipe"] for row in few} == {"fast16"}
    # More than twice its epochs is left over.
    assert few[2]["cost_usd"] < 5 and few[2]["epochs"] == pytest.approx(32, abs=0.01)
    free = purchases.purchases(TrainConfig(**RECIPES["fast16"].settings), TIMES, 5.0, 20_000, 10)
    assert free == [] and "give --price_per_hour" in purchases.describe(free, 0.0)


def test_too_little_is_said():
    slow = TIMES.faster(1e-3)
    found = purchases.purchases(MEASURED, slow, 5.0, 1_281_167, 1000)
    text = purchases.describe(found, PRICE)
    assert all(row["steps"] == 0 for row in found)
    assert "too little: at least --budget_usd" in text


def test_steps_of_whole_runs_agree_with_the_plan():
    """The rows are what train.py would choose with these times."""
    cfg = purchases.recipe_settings("fast16", MEASURED)
    choice = budget_plan.choose(
        TrainConfig(**cfg.to_json() | {"layers": cfg.layers, "budget_usd": 5.0}),
        {},
        1_281_167 // 4096,
        TIMES,
        budget_plan.fixed_costs(cfg, TIMES, 65.0, 5.0),
    )
    row = next(row for row in rows() if (row["recipe"], row["budget_usd"]) == ("fast16", 5.0))
    assert row["steps"] == choice.likely_steps and math.isclose(row["hours"] * 3600, choice.seconds)
