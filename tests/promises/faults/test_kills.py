"""SIGKILL of everything, at moments of every kind, again and again; the same command then runs to
the end, and ends as if nothing had happened.

The kinds: start-up, a step, a checkpoint being written, evaluation, the epoch's end, and around the
last step. tests/promises/test_resume.py has kills at given steps, with growing images, a pack and a
ResNet50; tests/promises/test_resume_methods.py with every method of training;
tests/records/test_checkpoint.py of a process that only saves.
"""

import os
import random
import signal

import pytest
import torch
from support.commands import ONE_RANK, run, start, train_words, wait_for
from support.in_process import run_here
from support.kills import KINDS, Killer, assert_as_if_nothing_was, flags_of, is_saving, words_of
from support.runs import assert_same_end, newest_checkpoint

from resnet50.records import checkpoint

pytestmark = [pytest.mark.usefixtures("no_leftovers"), pytest.mark.timeout(1800)]

# One campaign is one run that is killed at these moments and then left to end.
SHORT = [
    ("one rank", 0, 3, KINDS),
    ("one rank", 2, 7, ("save", "start-up", "evaluation", "step", "save", "epoch's end")),
    ("supervisor", 1, 1, ("save", "start-up", "last step")),
    ("one rank", 1, 3, ("step", "save")),
]
LONG = (
    [("one rank", n % 3, (1, 3, 7)[n // 3 % 3], (*KINDS[:-1], "save", KINDS[-1])) for n in range(9)]
    + [
        (launcher, n, (7, 1, 3)[n], (*KINDS[:-1], "save", KINDS[-1]))
        for launcher in ("supervisor", "two ranks")
        for n in range(3)
    ]
    + [("one rank", 1, 1, ("save", "evaluation", "last step"))]
)
START_UP_S = {"one rank": 2.0, "supervisor": 6.0, "two ranks": 6.0}


def test_the_short_form_has_17_kills_and_the_long_one_more_than_100():
    assert sum(len(kinds) for *_, kinds in SHORT) == 17
    assert sum(len(kinds) for *_, kinds in LONG) >= 100


@pytest.mark.parametrize(
    "launcher, num_workers, save_every, kinds",
    [*SHORT, *(pytest.param(*campaign, marks=pytest.mark.long) for campaign in LONG)],
)
def test_killed_again_and_again_it_ends_as_if_nothing_was(
    image_folder, tmp_path, launcher, num_workers, save_every, kinds
):
    run_dir = tmp_path / "run"
    flags = flags_of(
        image_folder, run_dir, f"--num_workers={num_workers}", f"--save_every_steps={save_every}"
    )
    rng = random.Random(f"{num_workers} {save_every} {kinds}")
    words, variables = words_of(launcher, flags)
    killer = Killer(words, variables, run_dir, rng, START_UP_S[launcher])
    for kind in kinds:
        killer.kill_at(kind)
    print(f"{launcher}, hits: {dict(killer.hits)}, misses: {dict(killer.misses)}")
    for kind in set(kinds):
        assert 3 * killer.hits[kind] >= kinds.count(kind), f"{kind}: {killer.hits}"
    is_alone = launcher == "one rank"
    result = run_here(words, tmp_path) if is_alone else run(words, tmp_path, **variables)
    assert result.code == 0, result.err
    assert_as_if_nothing_was(image_folder, run_dir)


@pytest.mark.long
def test_a_resnet50_killed_while_it_saves_ends_with_the_same_bits(image_folder, tmp_path):
    """Its checkpoint of 300 MB is being written when the kill comes."""
    flags = [f"--data_dir={image_folder}", "--epochs=2", "--image_size=32", "--ema_decay=0.9"]
    flags += ["--total_batch_size=16", "--device_batch_size=8", "--num_workers=2", "--amp=fp32"]
    flags += ["--log_every_steps=1", "--eval_every_epochs=2", "--max_lr=0.02", "--max_steps=4"]
    flags += ["--save_every_steps=2"]
    words = train_words(*flags, f"--run_dir={tmp_path / 'straight'}")
    assert run_here(words, tmp_path).code == 0
    words = train_words(*flags, f"--run_dir={tmp_path / 'killed'}")
    process = start(words, tmp_path, **ONE_RANK)
    folder = tmp_path / "killed" / "checkpoints"
    wait_for(lambda: checkpoint.newest_step(folder) == 2 and is_saving(tmp_path / "killed"))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert is_saving(tmp_path / "killed"), "the checkpoint was whole before the kill"
    result = run_here(words, tmp_path)
    assert result.code == 0 and "resuming at step 2" in result.out
    assert_same_end(tmp_path / "straight", tmp_path / "killed")
    assert not is_saving(tmp_path / "killed")
    state = torch.load(newest_checkpoint(tmp_path / "killed"), weights_only=True)
    assert len(state["model"]) == 320
