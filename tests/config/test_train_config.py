"""One list of settings: flags, presets, checks, JSON, and what a resume may change."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet50.config import train_flags
from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig

PRESETS = {name: recipe.summary for name, recipe in RECIPES.items()}
FIELDS = dataclasses.fields(TrainConfig)


def parse(*words: str) -> train_flags.Request:
    return train_flags.parse(train_flags.build_parser(PRESETS, ""), words)


@pytest.mark.parametrize("item", FIELDS, ids=lambda item: item.name)
def test_every_setting_is_a_flag_and_reads_back(item):
    paths = dict.fromkeys(("data_dir", "run_dir", "init_from"), "somewhere")  # never empty
    value = {"layers": (1, 2, 3, 4), "recipe": "tiny", **paths}.get(item.name, item.default)
    if isinstance(value, bool):
        assert parse(f"--no_{item.name}").settings == {item.name: False}
        assert parse(f"--{item.name}").settings == {item.name: True}
        return
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    assert parse(f"--{item.name}", shown).settings == {item.name: value}
    assert parse(f"--{item.name.replace('_', '-')}={shown}").settings == {item.name: value}


def test_only_explicit_flags_are_reported():
    assert parse().settings == {}
    assert parse("--epochs", "50").settings == {"epochs": 50}  # also when it is the default


@pytest.mark.parametrize(
    "words, message",
    [
        (["--epoch", "3"], "unrecognized arguments: --epoch"),  # no abbreviations
        (["--epochs", "many"], "--epochs: invalid int value: 'many'"),
        (["--recipe", "fast"], "--recipe: invalid choice: 'fast'"),
        (["--no-such-flag"], "unrecognized arguments: --no_such_flag"),
        (["--overwrite"], "--overwrite needs --fresh"),
    ],
)
def test_unknown_flags_end_with_code_2(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(*words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
        ({"max_lr": 0.0}, "--max_lr 0.0: must be above 0"),
        ({"max_lr": float("nan")}, "--max_lr nan: must be above 0"),
        ({"momentum": 1.5}, "--momentum 1.5: must be at most 1"),
        ({"amp": "fp8"}, "--amp fp8: choose from auto, bf16, fp16, fp32"),
        ({"epochs": 1.5}, "--epochs 1.5: must be of type int"),
        ({"total_batch_size": 100, "device_batch_size": 64}, "use a multiple, such as 128"),
        ({"layers": (1, 1)}, "--layers needs four numbers, got 1,1"),
        ({"nesterov": True, "momentum": 0.0}, "--nesterov needs --momentum above 0"),
        ({"eval_resize_size": 100}, "--eval_resize_size 100 is smaller than the crop of 224 px"),
    ],
)
def test_bad_values_name_option_value_and_remedy(settings, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        TrainConfig(**settings)


def test_presets_are_valid_and_the_published_run_is_kept():
    for recipe in RECIPES.values():
        TrainConfig(**recipe.settings)
    published = TrainConfig(**RECIPES["onecycle50"].settings)
    expected = {
        "epochs": 50,
        "total_batch_size": 256,
        "momentum": 0.9,
        "max_lr": 0.175,
        "weight_decay": 1e-4,
        "anneal_strategy": "cos",
        "image_size": 224,
        "nesterov": False,
    }
    assert {name: getattr(published, name) for name in expected} == expected
    assert "74.99" in RECIPES["onecycle50"].result and "92.42" in RECIPES["onecycle50"].result


@given(
    st.builds(
        TrainConfig,
        epochs=st.integers(1, 1000),
        max_lr=st.floats(1e-6, 10),
        layers=st.tuples(*[st.integers(1, 9)] * 4),
        run_dir=st.text(),
        flip=st.booleans(),
    )
)
def test_json_gives_the_same_settings_back(cfg):
    assert TrainConfig.from_json(json.loads(json.dumps(cfg.to_json()))) == cfg


def test_settings_of_another_version_are_refused():
    with pytest.raises(ValueError, match="unknown settings learning_rate"):
        TrainConfig.from_json({"learning_rate": 0.1})


# 81 is a lot: adding one requires changing this.
SETTINGS = (
    "data_dir run_dir mirror recipe layers width base_width zero_init_gamma blurpool v1_strides "
    "init_from image_size start_image_size grow_start_epoch grow_end_epoch image_size_multiple "
    "size_stages shuffle_sizes eval_image_size eval_resize_size upright min_crop_scale flip "
    "alternate_flips trivial_augment random_erasing mixup_alpha cutmix_alpha epochs "
    "total_batch_size device_batch_size optimizer max_lr momentum nesterov weight_decay "
    "decay_norms decoupled_weight_decay fused_optimizer loss label_smoothing clip_grad_norm "
    "ema_decay ema_every_steps ema_rescale seed schedule pct_start anneal_strategy three_phase "
    "div_factor final_div_factor cycle_momentum warmup_epochs warmup_factor min_lr step_epochs "
    "step_factor plateau_epochs plateau_lr plateau_factor plateau_patience amp channels_last "
    "compile deterministic num_workers max_steps max_minutes eval_every_epochs target_top1 "
    "save_every_steps save_every_minutes hang_minutes keep_checkpoints max_bad_images "
    "log_every_steps log_every_s spot_watch tensorboard price_per_hour"
)


def test_the_settings_are_a_frozen_list():
    assert " ".join(item.name for item in FIELDS) == SETTINGS


def test_help_explains_every_setting():
    text = train_flags.build_parser(PRESETS, "").format_help()
    for item in FIELDS:
        assert f"--{item.name}" in text or f"--no_{item.name}" in text
        assert len(item.metadata["text"]) > 10
