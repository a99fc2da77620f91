"""Every recipe is what was published, every figure has its source, the costs are right by hand."""

import dataclasses
import datetime
import json
import re

import gpu_rates
import numpy as np
import pytest
import recipe_costs
import torch
from PIL import Image
from support.commands import REPOSITORY

from resnet50.config import instance_prices, recipes, small_recipes
from resnet50.config.fields import AUTO
from resnet50.config.recipe import as_markdown, describe
from resnet50.config.recipes import DEFAULT_RECIPE, RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.training.learning_rate import LearningRate, LearningRateSettings, curve_rate
from resnet50.training.plan import epoch_sizes, image_size_at

IMAGES = 1_281_167

# Written out from where they were published, not from recipes.py: epochs, batch, peak rate,
# momentum, weight decay, label smoothing, evaluation size, top-1, top-5.
PUBLISHED = {
    "onecycle50": (50, 256, 0.175, 0.9, 1e-4, 0.0, 224, 74.99, 92.42),
    "onecycle40": (40, 384, 0.478, 0.9, 1e-4, 0.0, 224, 73.55, None),
    "onecycle_plateau": (70, 512, 0.175, 0.9, 1e-4, 0.0, 224, 72.82, None),
    "classic90": (90, 256, 0.1, 0.9, 1e-4, 0.0, 224, 76.130, 92.862),
    "fast16": (16, 4096, 1.7, 0.9, 1e-4, 0.1, 256, 73.8, 91.8),
    "fast32": (32, 4096, 1.7, 0.9, 1e-4, 0.1, 256, 76.6, 93.5),
    "fast88": (88, 4096, 1.7, 0.9, 1e-4, 0.1, 256, 78.4, 94.3),
    "mild": (32, 2048, 2.048, 0.875, 5e-4, 0.08, 224, 76.6, None),
    "mild28": (28, 2048, 2.048, 0.875, 5e-4, 0.08, 224, 75.9, None),
    "v2": (600, 1024, 0.5, 0.9, 2e-5, 0.1, 224, 80.674, 95.166),
}

UNPROVEN = {"mild24"}  # for ImageNet, and nobody's yet


def config_of(name: str) -> TrainConfig:
    return TrainConfig(**RECIPES[name].settings)


def learning_rate_settings(name: str) -> LearningRateSettings:
    """Epochs as steps of ImageNet, for a curve over the whole run."""
    cfg, spe = config_of(name), IMAGES // config_of(name).total_batch_size
    fields = {item.name for item in dataclasses.fields(LearningRateSettings)}
    shared = {key: value for key, value in dataclasses.asdict(cfg).items() if key in fields}
    return LearningRateSettings(
        **shared,
        curve_steps=cfg.epochs * spe,
        total_steps=cfg.epochs * spe,
        steps_per_epoch=spe,
        warmup_steps=round(cfg.warmup_epochs * spe),
    )


def rates(name: str) -> np.ndarray:
    """The learning rate of every step."""
    settings = learning_rate_settings(name)
    learning_rate = LearningRate(torch.optim.SGD([torch.zeros(1)], lr=1.0), settings)
    values = [learning_rate.lr]
    for step in range(1, settings.total_steps):
        learning_rate.advance(step)
        values.append(learning_rate.lr)
    return np.array(values)


@pytest.mark.parametrize("name", RECIPES)
def test_settings_are_valid(name):
    cfg = config_of(name)
    assert {"epochs", "image_size", "total_batch_size"} <= set(RECIPES[name].settings)
    on_imagenet = "ImageNet-1K" in RECIPES[name].summary
    assert (cfg.device_batch_size == AUTO) == on_imagenet == (name in PUBLISHED or name in UNPROVEN)
    assert recipes.AUTO == AUTO and recipes.DEFAULT_RECIPE in RECIPES


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_numbers_are_the_published_ones(name):
    cfg, recipe = config_of(name), RECIPES[name]
    found = (
        cfg.epochs,
        cfg.total_batch_size,
        cfg.max_lr,
        cfg.momentum,
        cfg.weight_decay,
        cfg.label_smoothing,
        cfg.eval_crop,
        recipe.top1,
        recipe.top5,
    )
    assert found == PUBLISHED[name]
    assert not cfg.nesterov and cfg.min_crop_scale == 0.08 and cfg.flip
    assert cfg.optimizer == "sgd"


def test_what_else_each_published():
    assert config_of("onecycle40").eval_every_epochs == 5
    plateau = config_of("onecycle_plateau")
    assert (plateau.schedule, plateau.curve_epochs, plateau.plateau_epochs) == ("onecycle", 60, 10)
    for name in ("classic90", "fast16", "fast32", "fast88", "mild", "mild28", "v2"):
        assert not config_of(name).zero_init_gamma  # torchvision's resnet50() has it off
    assert config_of("classic90").decay_norms and not config_of("v2").decay_norms
    assert {name for name in PUBLISHED if config_of(name).blurpool} == {
        "fast16",
        "fast32",
        "fast88",
        "mild",
        "mild28",
    }
    v2 = config_of("v2")
    assert (v2.image_size, v2.eval_resize, v2.trivial_augment) == (176, 232, True)
    assert (v2.mixup_alpha, v2.cutmix_alpha, v2.random_erasing) == (0.2, 1.0, 0.1)
    for name in ("mild", "mild28"):
        mild = config_of(name)
        assert (mild.loss, mild.decoupled_weight_decay, mild.decay_norms) == ("bce", True, True)
        assert mild.eval_resize == 232


def test_ffcv_evaluates_the_middle_of_the_picture():
    # The middle 224/256 of the shorter side at 256 px is the middle 256 of 292.57 px.
    for name in ("fast16", "fast32", "fast88"):
        assert config_of(name).eval_resize == round(256 * 256 / 224) == 293


def test_averages_forget_at_the_published_pace():
    for name in ("mild", "mild28"):
        cfg = config_of(name)
        updates_in_half_life = 100 / cfg.ema_every_steps
        assert cfg.ema_every_steps == 20
        assert cfg.ema_update_decay**updates_in_half_life == pytest.approx(0.5, abs=1e-12)
    # torchvision: alpha = (1 - 0.99998) x (8 GPUs x 128 images x 32 steps / 600 epochs)
    v2 = config_of("v2")
    assert v2.ema_every_steps == 32
    assert v2.ema_update_decay == pytest.approx(1 - 2e-5 * 8 * 128 * 32 / 600, abs=1e-12)


@pytest.mark.parametrize(
    "name, at_160, at_192",
    [("fast16", 12, 4), ("fast32", 25, 7), ("fast88", 71, 17)],
)
def test_sizes_follow_ffcv_s_ramp(name, at_160, at_192):
    # numpy's interpolation between start_ramp and end_ramp, rounded to 32 px, as published
    ramp = {"fast16": (11, 13), "fast32": (23, 27), "fast88": (65, 76)}[name]
    theirs = [
        160
        if epoch <= ramp[0]
        else 192
        if epoch >= ramp[1]
        else int(np.round(np.interp(epoch, ramp, [160, 192]) / 32)) * 32
        for epoch in range(at_160 + at_192)
    ]
    ours = recipe_costs.epoch_sizes(config_of(name))
    assert ours == theirs == [160] * at_160 + [192] * at_192


def test_sizes_follow_composer_s_ramp():
    for name, epochs in (("mild", 32), ("mild28", 28), ("mild24", 24)):
        ours = recipe_costs.epoch_sizes(config_of(name))
        elapsed = np.arange(epochs) / epochs
        scale = 0.5 + 0.5 * np.clip((elapsed - 0.4) / (1 - 0.2 - 0.4), 0, 1)
        assert ours == [round(176 * s / 4) * 4 for s in scale.tolist()]
        assert ours[int(0.4 * epochs)] == 88 and ours[-int(0.2 * epochs)] == 176


@pytest.mark.parametrize("name", ["fast16", "fast32"])
def test_ffcv_s_rate_is_a_triangle(name):
    epochs, spe = PUBLISHED[name][0], 312
    found = rates(name)
    assert len(found) == epochs * spe and found[0] == pytest.approx(1.7e-4)
    theirs = np.interp(np.arange(len(found)) / spe, [0, 2, epochs], [1.7e-4, 1.7, 0])
    one_step = 1.7 / (2 * spe)  # OneCycleLR peaks a step earlier
    assert np.abs(found - theirs).max() < 1.1 * one_step
    assert found.argmax() == 2 * spe - 1 and found.max() == pytest.approx(1.7)
    assert 0 < found[-1] < 1e-6


def test_one_cycle_is_torch_s_default_one():
    cfg = config_of("onecycle50")
    assert (cfg.pct_start, cfg.div_factor, cfg.final_div_factor) == (0.3, 25, 1e4)
    assert (cfg.anneal_strategy, cfg.cycle_momentum) == ("cos", False)


def test_rates_of_the_closed_schedules():
    classic, spe = learning_rate_settings("classic90"), 5004
    at = [0, 30 * spe - 1, 30 * spe, 60 * spe, 90 * spe - 1]
    assert [curve_rate(classic, step) for step in at] == pytest.approx([0.1, 0.1, 0.01, 1e-3, 1e-3])
    mild, spe = learning_rate_settings("mild"), 625
    at = [0, 4 * spe, 8 * spe, 20 * spe, 32 * spe - 1]
    expected = [0, 1.024, 2.048, 1.024, 0]
    assert [curve_rate(mild, step) for step in at] == pytest.approx(expected, abs=1e-6)
    v2, spe = learning_rate_settings("v2"), 1251
    at = [0, 5 * spe, 5 * spe + 595 * spe // 2, 600 * spe - 1]
    assert [curve_rate(v2, step) for step in at] == pytest.approx([0.005, 0.5, 0.25, 0], abs=1e-6)


def test_what_is_unproven_changes_what_it_says_and_has_no_figure():
    mild, ours = (dataclasses.asdict(config_of(name)) for name in ("mild28", "mild24"))
    changed = {name for name in mild if mild[name] != ours[name]}
    growth = {"grow_start_epoch", "grow_end_epoch"}  # as shares of the epochs
    assert changed == {"epochs", "min_crop_scale", "alternate_flips"} | growth
    assert "unproven" in RECIPES["mild24"].summary and RECIPES["mild24"].top1 is None
    assert not UNPROVEN & set(recipe_costs.imagenet_recipes())


def test_no_figure_without_a_source():
    for name, recipe in RECIPES.items():
        assert recipe.source and recipe.summary
        assert (recipe.top1 is None) or recipe.evaluated
        if recipe.top1 is None:
            assert recipe.top5 is None and recipe.source.startswith(small_recipes.OURS)
        assert (recipe.gpu_hours is None) == (recipe.gpu == "")
        if name in PUBLISHED and name != "onecycle50":
            assert recipe.differs
        # Nothing that looks like an absolute path: 93.5 / 94.3 and assets/agg.csv are none.
        assert not re.search(r"(^|[\s(`])/\w", recipe.source + " " + recipe.differs)


def test_the_description_has_every_recipe_and_figure():
    text = describe(RECIPES, DEFAULT_RECIPE)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100 and text.endswith("\n")
    paragraphs = dict(zip(RECIPES, text.split("\n\n"), strict=True))
    for name, recipe in RECIPES.items():
        words = " ".join(paragraphs[name].split())
        assert words.startswith(f"{name}: ") or words.startswith(f"{name} (default): ")
        for part in (recipe.summary, recipe.source, recipe.evaluated if recipe.top1 else ""):
            assert part in words
        for figure in (recipe.top1, recipe.top5, recipe.gpu_hours):
            assert figure is None or f"{figure:g}" in words
    assert "160->192 px, tested at 256 px" in text and "88->176 px, tested at 224 px" in text
    for recipe in RECIPES.values():
        assert recipe.differs in " ".join(text.split())
    assert f"{DEFAULT_RECIPE} (default)" in text


def test_the_markdown_table_has_every_recipe():
    header, _, *rows = as_markdown(RECIPES, DEFAULT_RECIPE).splitlines()
    assert [row.split("`")[1] for row in rows] == list(RECIPES)
    assert {row.count("|") for row in rows} == {header.count("|")}
    assert "| 80.674 / 95.166 (224 px) |" in rows[list(RECIPES).index("v2")]


def projected(name: str, instance: str, images_per_s: float) -> recipe_costs.Cost:
    host = instance_prices.read()[instance]
    rate = recipe_costs.Rate(host.gpu, images_per_s, "", "")
    return recipe_costs.project(name, host, rate)


def test_a_projection_by_hand():
    cost = projected("onecycle50", "g5.4xlarge", 810)
    assert cost.hours == pytest.approx(50 * (1_281_167 + 50_000) / 810 / 3600)
    assert cost.hours == pytest.approx(22.826, abs=1e-3)
    assert cost.dollars == pytest.approx(22.826 * 1.624, abs=0.01)
    assert cost.needs == 810
    # 8 evaluations in 40 epochs; 12 epochs at 160 px and 4 at 192 px on 8 A100s
    cost = projected("onecycle40", "g5.4xlarge", 810)
    assert cost.hours == pytest.approx((40 * 1_281_167 + 8 * 50_000) / 810 / 3600)
    cost = projected("fast16", "p4de.24xlarge", 2000)
    pixels = 12 * 1_281_167 * 160**2 + 4 * 1_281_167 * 192**2 + 16 * 50_000 * 256**2
    assert cost.hours == pytest.approx(pixels / 224**2 / 16_000 / 3600)
    assert cost.gpu_hours == pytest.approx(8 * cost.hours)
    assert cost.needs == pytest.approx(16_000 * 1.96)


LOGGED = [row for row in gpu_rates.published() if row["derived"] == "no"]


@pytest.mark.parametrize("row", LOGGED, ids=[row["gpu"] for row in LOGGED])
@pytest.mark.parametrize("epochs", recipe_costs.MLPERF_EPOCHS)
def test_the_projection_reproduces_the_times_of_the_logs(row, epochs):
    """Of those whose rate is in the log, and not made of the time; whichever number of epochs."""
    ratio = recipe_costs.log_minutes(row, epochs) / float(row["minutes"])
    assert 0.85 < ratio < 1.15


def test_every_published_log_is_there_and_derived_rates_are_known_as_such():
    rows = gpu_rates.published()
    assert len(rows) == 14 and len(LOGGED) == 9
    derived = {row["gpu"] for row in rows if row["derived"] == "yes"}
    assert derived == {"A5000", "RTX 4090", "A10G", "RX 7900 XTX"}
    for row in rows:
        hours = int(row["gpus"]) * float(row["minutes"]) / 60
        assert hours == pytest.approx(float(row["gpu_hours"]), rel=0.01), row


def test_every_rate_has_a_source_and_ours_stand_beside_theirs():
    for host in recipe_costs.hosts():
        rates = gpu_rates.rates_of(host.gpu)
        assert rates and all(rate.stack and rate.source for rate in rates), host
    by_stack = {rate.stack: rate.images_per_s for rate in gpu_rates.rates_of("H100 SXM")}
    assert by_stack == {"MXNet, DALI, fp16": 7141, "ours, --compile": 5522, "ours": 3933}
    benchmarks = (REPOSITORY / "benchmarks" / "README.md").read_text()
    assert "3,933; 3,924 images/s; 5,522" in benchmarks


def test_prices_have_a_day_and_a_source():
    prices = instance_prices.read()
    assert len(prices) == len(instance_prices.FILE.read_text().splitlines()) - 1
    for row in prices.values():
        assert row.usd_per_hour > 0 and row.gpus > 0 and row.vcpus > 0 and row.source
        assert datetime.date.fromisoformat(row.read_on) and row.region
    assert prices["g5.4xlarge"].usd_per_hour == 1.624
    assert instance_prices.cheapest_per_gpu()["A10G"].instance == "g5.xlarge"


def test_the_guide_has_the_prices_of_the_file():
    text = (REPOSITORY / "ImageNet_Setup_Guide.md").read_text()
    rows = re.findall(r"^\| (\w+\.\w+) \|.*\| ([\d.]+) \| [^|]+\|$", text, re.MULTILINE)
    assert len(rows) >= 5
    for instance, price in rows:
        assert float(price) == round(instance_prices.read()[instance].usd_per_hour, 3), instance


def test_the_page_says_what_it_is(capsys, tmp_path):
    picture = tmp_path / "costs.png"
    words = ["--json", str(tmp_path / "costs.json"), "--picture", str(picture)]
    assert recipe_costs.main(words) == 0
    assert Image.open(picture).size == (800, 500)
    text = capsys.readouterr().out
    assert text.startswith("**Projections, not measurements**") and "ssumed" not in text
    for name in PUBLISHED:
        assert f"| `{name}` |" in text
    rows = json.loads((tmp_path / "costs.json").read_text())
    rates = sum(len(gpu_rates.rates_of(host.gpu)) for host in recipe_costs.hosts())
    assert len(rows) == len(PUBLISHED) * rates
    assert all(row["hours"] > 0 and row["is_projection"] for row in rows)
    assert f"{max(row['needs_images_per_s'] for row in rows):,.0f} images/s of decoding" in text


def test_advice_takes_the_cheapest_that_is_good_enough():
    costs = [projected(name, "g5.4xlarge", rate) for name in PUBLISHED for rate in (1000, 2000)]
    dollars = {cost.recipe: cost.dollars for cost in costs}
    for level, sentence in ((76, "`mild`"), (78, "`fast88`"), (80, "`v2`")):
        enough = [name for name in PUBLISHED if RECIPES[name].top1 >= level]
        cheapest = min(enough, key=dollars.__getitem__)
        assert sentence == f"`{cheapest}`"
        slow = projected(cheapest, "g5.4xlarge", 1000)
        assert any(
            line.startswith(f"* {level}% and less: {sentence}") and recipe_costs.on(slow) in line
            for line in recipe_costs.advice(costs)
        )


def test_the_costs_use_the_sizes_that_training_uses():
    cfg = config_of("fast32")
    assert epoch_sizes(cfg)[25] == image_size_at(cfg, 25)
