"""Settings that do not go together are refused early, and whatever is accepted can run."""

import ast
import dataclasses
import math
import re
import traceback
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.commands import REPOSITORY

from resnet50.config.fields import AUTO
from resnet50.config.train_config import TrainConfig
from resnet50.training import build, optimization
from resnet50.training.learning_rate import LearningRate
from resnet50.training.plan import make_plan

FIELDS = dataclasses.fields(TrainConfig)
EMA = {"ema_decay": 0.9}

# What is wrong, and what the message must have: option, value and remedy.
REFUSED = [
    # fields.py
    ({"epochs": "3"}, ["--epochs '3'", "must be of type int"]),
    ({"trivial_augment": 1}, ["--trivial_augment 1", "must be of type bool"]),
    ({"loss": "mse"}, ["--loss mse", "choose from ce, bce"]),
    ({"optimizer": "lars"}, ["--optimizer lars", "choose from sgd, adamw"]),
    ({"schedule": "cosine"}, ["--schedule cosine", "onecycle, warmup_cosine, step, plateau"]),
    ({"mixup_alpha": -0.1}, ["--mixup_alpha -0.1", "must be at least 0"]),
    ({"random_erasing": 1.1}, ["--random_erasing 1.1", "must be at most 1"]),
    ({"ema_decay": 1.0}, ["--ema_decay 1.0", "must be at most 0.999999"]),
    ({"target_top1": 101.0}, ["--target_top1 101.0", "must be at most 100"]),
    ({"plateau_factor": 1.0}, ["--plateau_factor 1.0", "must be at most 0.999"]),
    ({"div_factor": 0.0}, ["--div_factor 0.0", "must be above 0"]),
    ({"max_lr": math.inf}, ["--max_lr inf", "must be finite"]),
    ({"min_lr": math.nan}, ["--min_lr nan", "must be at least 0"]),
    ({"ema_every_steps": 0, **EMA}, ["--ema_every_steps 0", "must be at least 1"]),
    # train_config.py
    ({"layers": (3, 4, 6)}, ["--layers needs four numbers", "3,4,6"]),
    # checks.py
    (
        {"width": 8, "base_width": 33},
        ["--base_width 33", "--width 8", "use a multiple of 8"],
    ),
    (
        {"total_batch_size": 100, "device_batch_size": 64},
        ["--total_batch_size 100", "--device_batch_size 64", "use a multiple, such as 128"],
    ),
    *[
        (
            {"device_batch_size": 1, name: 0.2},
            ["--mixup_alpha and --cutmix_alpha", "--device_batch_size 1", "use 2 or more"],
        )
        for name in ("mixup_alpha", "cutmix_alpha")
    ],
    *[
        (
            {"start_image_size": size, "grow_end_epoch": 5.0},
            [f"--start_image_size {size}", "must be from 32 to --image_size 224"],
        )
        for size in (31, 256)
    ],
    (
        {"start_image_size": 160, "grow_start_epoch": 4.0, "grow_end_epoch": 4.0},
        ["--start_image_size 160", "--grow_end_epoch 4 must be above --grow_start_epoch 4"],
    ),
    ({"size_stages": "96"}, ["--size_stages 96", "SIZE:PERCENT, such as 96:20,160:40,224:40"]),
    ({"size_stages": "96:50,224:40"}, ["96:50,224:40", "add up to 90, not to 100"]),
    ({"size_stages": "96:-50,224:150"}, ["must be above 0"]),
    ({"size_stages": "96:50,192:50"}, ["the largest one --image_size, which is 224"]),
    ({"size_stages": "16:50,224:50"}, ["at least 32"]),
    (
        {"size_stages": "96:99.9,224:0.1", "epochs": 16},
        ["--epochs 16", "none would be of 224 px", "more percent"],
    ),
    (
        {"size_stages": "96:50,224:50", "start_image_size": 96, "grow_end_epoch": 5.0},
        ["--start_image_size 96 exclude each other", "give --start_image_size 0"],
    ),
    ({"shuffle_sizes": True}, ["--shuffle_sizes needs --size_stages"]),
    ({"alternate_flips": True, "flip": False}, ["--alternate_flips needs --flip"]),
    (
        {"eval_image_size": 256, "eval_resize_size": 232},
        ["--eval_resize_size 232", "crop of 256 px", "use at least 256"],
    ),
    ({"nesterov": True, "momentum": 0.0}, ["--nesterov", "needs --momentum above 0"]),
    *[
        (
            {"optimizer": "adamw", name: True},
            [f"--{name} is for --optimizer sgd", "leave out one of them"],
        )
        for name in ("nesterov", "decoupled_weight_decay")
    ],
    ({"optimizer": "adamw", "momentum": 1.0}, ["--momentum 1", "must be below 1"]),
    ({"ema_rescale": True}, ["--ema_rescale needs --ema_decay above 0"]),
    ({"ema_every_steps": 2}, ["--ema_every_steps needs --ema_decay above 0"]),
    (
        {"ema_decay": 0.9, "ema_rescale": True, "epochs": 10},
        ["--ema_rescale", "--ema_decay 0.9", "batches of 256 and 10 epochs", "give a larger"],
    ),
    *[
        (
            {"schedule": "step", name: True},
            [f"--{name} is for --schedule onecycle, not step"],
        )
        for name in ("three_phase", "cycle_momentum")
    ],
    ({"warmup_epochs": 5.0}, ["--warmup_epochs 5", "onecycle rises in --pct_start"]),
    ({"three_phase": True, "pct_start": 0.6}, ["--pct_start 0.6", "--three_phase", "0.5 or less"]),
    (
        {"schedule": "warmup_cosine", "min_lr": 0.2, "max_lr": 0.1},
        ["--min_lr 0.2 is above --max_lr 0.1"],
    ),
    (
        {"schedule": "warmup_cosine", "warmup_epochs": 45.0, "plateau_epochs": 5},
        ["--warmup_epochs 45", "must be below the 45 epochs"],
    ),
    (
        {"schedule": "plateau", "plateau_epochs": 5},
        ["--plateau_epochs 5", "--schedule plateau has no other", "leave out one"],
    ),
    (
        {"plateau_epochs": 50},
        ["--plateau_epochs 50 leave no other", "--epochs 50", "use fewer, or --schedule plateau"],
    ),
    (
        {"budget_usd": 5.0},
        ["--budget_usd 5 needs --price_per_hour X", "Or give --budget_hours"],
    ),
    (
        {"budget_usd": 5.0, "budget_hours": 2.0, "price_per_hour": 1.0},
        ["--budget_usd 5 and --budget_hours 2 both say", "give one of them"],
    ),
    *[
        ({"budget_hours": 2.0, **more}, [*texts, "--budget_hours 2"])
        for more, texts in (
            ({"max_steps": 9}, ["--max_steps 9 would end the run", "leave out one of them"]),
            ({"max_minutes": 9.5}, ["--max_minutes 9.5 would end the run"]),
            ({"schedule": "plateau"}, ["--schedule plateau follows the validation loss"]),
        )
    ],
    (
        {"budget_events": "events.jsonl"},
        ["--budget_events events.jsonl needs --num_steps", "which its config.json has"],
    ),
    *[
        (
            {"num_steps": 470, "plateau_patience": 0, **more},
            ["--num_steps 470 may end in mid-epoch", phase, "leave out one of them"],
        )
        for more, phase in (
            ({"plateau_epochs": 5}, "--plateau_epochs follows"),
            ({"schedule": "plateau"}, "--schedule plateau follows"),
        )
    ],
    *[
        (
            {"plateau_patience": 2, **more},
            [f"--eval_every_epochs {every} leaves {count} ev", "--plateau_patience 2 needs 4"],
        )
        for more, every, count in (
            ({"plateau_epochs": 4}, 1, 3),
            ({"plateau_epochs": 10, "eval_every_epochs": 3}, 3, 3),
            ({"schedule": "plateau", "eval_every_epochs": 0}, 0, 0),
            ({"schedule": "plateau", "epochs": 9, "warmup_epochs": 5.5}, 1, 3),
        )
    ],
]


def refusal(changes: dict) -> tuple[str, str, int]:
    """The message, and the file and line that raised it."""
    with pytest.raises(ValueError) as refused:
        TrainConfig(**changes)
    frame = traceback.extract_tb(refused.value.__traceback__)[-1]
    return str(refused.value), Path(frame.filename).name, frame.lineno


@pytest.mark.parametrize("changes, texts", REFUSED, ids=lambda x: str(x)[:60])
def test_a_refusal_names_option_value_and_remedy(changes, texts):
    message, _, _ = refusal(changes)
    assert all(text in message for text in texts), message
    options = set(re.findall(r"--(\w+)", message))
    assert options & set(changes) and options <= {item.name for item in FIELDS}


def test_every_refusal_that_there_is_is_in_this_table():
    reached = {refusal(changes)[1:] for changes, _ in REFUSED}
    for name, first in (("checks", "check"), ("fields", "check_value")):
        tree = ast.parse((REPOSITORY / f"resnet50/config/{name}.py").read_text())
        functions = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name.startswith(first)
        ]
        raises = [n for f in functions for n in ast.walk(f) if isinstance(n, ast.Raise)]
        assert len(raises) > 5
        for node in raises:
            lines = range(node.lineno, node.end_lineno + 1)
            assert any((f"{name}.py", line) in reached for line in lines), ast.unparse(node)


def test_what_is_refused_together_is_accepted_apart():
    TrainConfig(device_batch_size=2, mixup_alpha=0.2, cutmix_alpha=1.0)
    TrainConfig(start_image_size=32, grow_end_epoch=1.0)
    TrainConfig(optimizer="adamw", momentum=0.0)
    TrainConfig(schedule="warmup_cosine", warmup_epochs=44.9, plateau_epochs=5)
    TrainConfig(plateau_epochs=5, plateau_patience=2)
    TrainConfig(schedule="plateau", epochs=10, warmup_epochs=5.5, plateau_patience=2)


def test_only_four_settings_may_be_found_out_at_the_start():
    assert {item.name for item in FIELDS if item.metadata["may_be_auto"]} == {
        "device_batch_size",
        "max_lr",
        "price_per_hour",
        "upright",
    }
    for item in FIELDS:
        if item.metadata["may_be_auto"] or (type(item.default) is str and item.name != "amp"):
            continue
        if item.name == "amp":  # that is one of its own choices
            assert TrainConfig(amp=AUTO).amp == AUTO
        else:
            with pytest.raises(ValueError, match=rf"--{item.name} 'auto': must be of type"):
                TrainConfig(**{item.name: AUTO})
    cfg = TrainConfig(device_batch_size=AUTO, max_lr=AUTO, mixup_alpha=0.2)
    assert TrainConfig.from_json(cfg.to_json()) == cfg


@pytest.mark.parametrize("word", ["Auto", "AUTO", "", "none"])
def test_no_other_word_is_a_number(word):
    for name in ("device_batch_size", "max_lr"):
        with pytest.raises(ValueError, match=f"--{name} '{word}': must be of type"):
            TrainConfig(**{name: word})


wide = st.floats(1e-9, 1e9)
schedules = st.fixed_dictionaries(
    {
        "schedule": st.sampled_from(["onecycle", "warmup_cosine", "step", "plateau"]),
        "epochs": st.integers(1, 8),
    },
    optional={
        "num_steps": st.integers(0, 40),
        "max_lr": wide,
        "optimizer": st.sampled_from(["sgd", "adamw"]),
        "momentum": st.sampled_from([0.0, 0.9, 1.0]),
        "pct_start": st.floats(0, 1) | st.sampled_from([1 / 3, 0.25, 1 - 2**-53]),
        "anneal_strategy": st.sampled_from(["cos", "linear"]),
        "three_phase": st.booleans(),
        "cycle_momentum": st.booleans(),
        "div_factor": wide,
        "final_div_factor": wide,
        "warmup_epochs": st.floats(0, 8),
        "warmup_factor": st.floats(0, 1),
        "min_lr": st.floats(0, 10),
        "step_epochs": st.integers(1, 10**9),
        "step_factor": st.floats(0, 1, exclude_min=True),
        "plateau_epochs": st.integers(0, 8),
        "plateau_lr": st.floats(0, 10),
        "plateau_factor": st.floats(0, 0.999, exclude_min=True),
        "plateau_patience": st.integers(0, 3),
        "eval_every_epochs": st.integers(0, 3),
        "decoupled_weight_decay": st.booleans(),
    },
)


@settings(max_examples=400)
@given(schedules, st.integers(1, 5))
@example({"schedule": "onecycle", "epochs": 1, "pct_start": 1.0, "three_phase": True}, 3)
@example({"schedule": "onecycle", "epochs": 2, "pct_start": 0.25}, 2)
def test_every_schedule_that_is_accepted_can_be_followed_to_its_end(changes, steps_per_epoch):
    """Except for one thing that depends on the number of images, which the start reports."""
    try:
        cfg = TrainConfig(total_batch_size=16, device_batch_size=16, **changes)
        plan = make_plan(cfg, 16 * steps_per_epoch)
    except ValueError as error:
        assert str(error).startswith("--")
        return
    optimizer = optimization.build_optimizer(torch.nn.Conv2d(1, 1, 1), cfg)
    rates = build.learning_rate_settings(cfg, plan)
    if cfg.schedule == "onecycle" and cfg.pct_start * rates.curve_steps == 1:
        with pytest.raises(ValueError, match=r"pct_start .* choose another"):
            LearningRate(optimizer, rates)
        return
    learning_rate = LearningRate(optimizer, rates)
    for step in range(1, plan.total_steps + 1):
        assert 0 <= learning_rate.lr < math.inf, learning_rate.lr
        optimizer.step()
        learning_rate.advance(step)
        if plan.ends_epoch(step):
            learning_rate.note_val_loss(step, 1.0)


@settings(max_examples=200)
@given(
    st.integers(1, 12),
    st.integers(0, 12),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from(["onecycle", "plateau"]),
)
def test_an_accepted_plateau_can_lower_the_rate_before_the_end(
    epochs, extra, every, patience, kind
):
    """With a validation loss that never improves; one that is refused could not lower it."""
    changes = {"epochs": epochs, "eval_every_epochs": every, "plateau_patience": patience}
    changes |= {"schedule": kind, "total_batch_size": 8, "device_batch_size": 8}
    changes |= {"plateau_epochs": extra} if kind == "onecycle" else {"warmup_epochs": float(extra)}
    if (not extra and kind == "onecycle") or extra >= epochs:
        return
    try:
        TrainConfig(**changes)
    except ValueError as error:
        assert "too few for the learning rate to fall" in str(error)
        may_fall = False
    else:
        may_fall = True
    plan = make_plan(TrainConfig(epochs=epochs, total_batch_size=8, device_batch_size=8), 16)
    curve_epochs = epochs - extra if kind == "onecycle" else extra
    rates = dataclasses.replace(
        build.learning_rate_settings(TrainConfig(), plan),
        schedule="step",
        curve_steps=curve_epochs * plan.steps_per_epoch,
        total_steps=plan.total_steps,
        plateau_patience=patience,
    )
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    fell, learning_rate = False, LearningRate(optimizer, rates)
    for step in range(1, plan.total_steps):
        optimizer.step()
        learning_rate.advance(step)
        if plan.evaluates_at(step, every):
            fell |= learning_rate.note_val_loss(step, 1.0)
    assert fell == may_fall
