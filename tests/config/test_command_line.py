"""Command lines typed out of habit from other programs, or with empty variables."""

from pathlib import Path

import pytest

import bench
import evaluate
import export
import lr_finder
import prepare_data
import train
from resnet50.config import habits, train_flags
from resnet50.config.command_line import Parser

TRAIN = ("train", lambda: train_flags.build_parser({}, ""))
COMMANDS = dict(
    [
        TRAIN,
        *((module.__name__, module.build_parser) for module in (bench, evaluate, export)),
        *((module.__name__, module.build_parser) for module in (lr_finder, prepare_data)),
    ]
)
assert train.main  # the command that TRAIN's parser belongs to


def error_of(capsys, command: str, *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        COMMANDS[command]().parse_args(words)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "command, words, text",
    [
        ("train", ["--batch_size", "16"], "--batch_size: did you mean --total_batch_size?"),
        ("train", ["--batch-size=16"], "did you mean --total_batch_size?"),
        ("train", ["-b", "16"], "-b: did you mean --total_batch_size?"),
        ("train", ["--lr", "0.1"], "did you mean --max_lr?"),
        ("train", ["--learning_rate", "0.1"], "did you mean --max_lr?"),
        ("train", ["-j", "4"], "did you mean --num_workers?"),
        ("train", ["--data", "x"], "did you mean --data_dir?"),
        ("train", ["--output-dir", "x"], "did you mean --run_dir?"),
        ("train", ["--resume"], "the same command with the same --run_dir resumes"),
        ("train", ["--pretrained"], "did you mean --init_from torchvision?"),
        ("train", ["--evaluate"], "python evaluate.py --data_dir DIR"),
        ("train", ["--gpus", "2"], "CUDA_VISIBLE_DEVICES picks some"),
        ("train", ["--arch", "resnet50"], "the model is a ResNet50"),
        ("train", ["--epoch=3"], "did you mean --epochs?"),
        ("train", ["--weight-decy", "0"], "did you mean --weight_decay?"),
        ("evaluate", ["--data", "x", "--checkpoint", "y"], "--checkpoint: did you mean --weights?"),
        ("evaluate", ["--resume", "y"], "did you mean --weights?"),
        ("export", ["--checkpoint", "y"], "did you mean --weights?"),
        ("prepare_data", ["x", "--output", "y"], "did you mean --out?"),
        ("evaluate", ["--device", "cuda"], "--device: a GPU is used if there is one"),
        ("bench", ["--workers", "2"], "did you mean --num_workers?"),
        ("lr_finder", ["--lr", "1"], "did you mean --max_lr?"),
    ],
)
def test_habits_of_other_programs_are_answered(capsys, command, words, text):
    assert text in error_of(capsys, command, *words)


def test_nothing_is_suggested_for_what_is_like_nothing(capsys):
    line = error_of(capsys, "train", "--xyzzy", "1", "-q")
    assert line.endswith("unrecognized arguments: --xyzzy 1 -q")
    line = error_of(capsys, "evaluate", "--data_dir", "x", "--weights", "y", "--lr", "1")
    assert line.endswith("unrecognized arguments: --lr 1"), "evaluation has no learning rate"


def test_what_is_suggested_exists():
    options = {option for build in COMMANDS.values() for option in build()._option_string_actions}
    options |= {"--host"}  # app.py's
    for choices in habits.MEANINGS.values():
        for choice in choices:
            if " " not in choice or choice.startswith("--"):
                assert f"--{choice.lstrip('-').split()[0]}" in options, choice


@pytest.mark.parametrize(
    "command, words, named",
    [
        ("train", ["--run_dir", "", "--fresh", "--overwrite"], "--run_dir is empty"),
        ("train", ["--run-dir="], "--run_dir is empty"),
        ("train", ["--data_dir", " "], "--data_dir is empty"),
        ("train", ["--init_from="], "--init_from is empty"),
        ("evaluate", ["--weights", "", "--data_dir", "x"], "--weights is empty"),
        ("export", ["--weights=x", "--out="], "--out is empty"),
        ("lr_finder", ["--out", ""], "--out is empty"),
        ("bench", ["--json="], "--json is empty"),
        ("prepare_data", ["", "--out", "x"], "an argument is empty"),
    ],
)
def test_an_empty_variable_is_not_the_current_folder(capsys, command, words, named):
    line = error_of(capsys, command, *words)
    assert named in line and "an unset variable?" in line


def test_a_tilde_is_the_home_folder_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = Parser("it", "")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--text")
    for words in (["--out=~/a"], ["--out", "~/a"]):
        assert parser.parse_args([*words, "--text=a~"]).out == Path("/home/me/a")
    assert parser.parse_args(["--text=a~b"]).text == "a~b"
