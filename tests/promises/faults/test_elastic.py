"""Other numbers of ranks and loader processes, changed in the middle of a run too: the same images,
pixels, order and learning rate at every step.

tests/promises/test_ranks.py shows the gradients and batch-norm buffers of two ranks, the end bits
of runs that go from 1 rank to 2 and back, and that a number of ranks that does not divide the
batch is refused.
"""

import itertools
import json
import random

import pytest
import torch
from support.commands import (
    ONE_RANK,
    run,
    run_program,
    tiny_flags,
    torchrun_words,
    train_words,
)
from support.runs import newest_checkpoint, steps_logged

pytestmark = pytest.mark.usefixtures("no_leftovers")

NUM_STEPS = 12  # three epochs, each with larger pictures


def hashes(data_dir, tmp_path, pieces_of_runs: list[list[tuple[int, ...]]]) -> list[list[str]]:
    """For every run, given as (ranks, loaders, first step, end), its micro-batches' hashes."""
    lines = "".join(json.dumps(pieces) + "\n" for pieces in pieces_of_runs)
    (tmp_path / "runs").write_text(lines)
    result = run_program("hash_steps", data_dir, tmp_path / "runs")
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def test_pixels_are_the_same_on_any_ranks_and_loaders(image_folder, tmp_path):
    runs = [[(w, n, 0, NUM_STEPS)] for w in (1, 2, 4) for n in (0, 1, 2, 3)]
    straight, *others = hashes(image_folder, tmp_path, runs)
    assert len(set(straight)) == 4 * NUM_STEPS and len(others) == 11
    for pieces, other in zip(runs[1:], others, strict=True):
        assert other == straight, pieces


@pytest.mark.parametrize("num_runs", [8, pytest.param(100, marks=pytest.mark.long)])
def test_pixels_are_the_same_when_restarts_change_both(image_folder, tmp_path, num_runs):
    """At random steps, in the middle of epochs too."""
    rng, runs = random.Random(0), [[(1, 0, 0, NUM_STEPS)]]
    for _ in range(num_runs):
        cuts = [0, *sorted(rng.sample(range(1, NUM_STEPS), rng.randrange(1, 5))), NUM_STEPS]
        pieces = itertools.pairwise(cuts)
        runs.append([(rng.choice((1, 2, 4)), rng.randrange(4), *piece) for piece in pieces])
    straight, *others = hashes(image_folder, tmp_path, runs)
    for pieces, other in zip(runs[1:], others, strict=True):
        assert other == straight, pieces


@pytest.mark.long
def test_a_run_goes_on_with_4_1_and_2_ranks(image_folder, tmp_path):
    """Order and pixels are compared above; here learning rate, loss and weights.

    Four ranks add their gradients in another order than one, so the last bits may differ: losses to
    a part in 10,000 at every step, weights to a part in 1,000 of their length in the end.
    """
    ends = []
    for name, pieces in (("one", [(1, 0, 12)]), ("many", [(4, 1, 5), (1, 2, 9), (2, 0, 12)])):
        flags = [*tiny_flags(image_folder, tmp_path / name), "--device_batch_size=4"]
        flags += ["--max_lr=0.001"]  # a larger one amplifies rounding: batch norm over 4 images
        for num_ranks, num_workers, steps in pieces:
            more = [f"--num_workers={num_workers}", f"--max_steps={steps}"]
            words, alone = torchrun_words(num_ranks, "train.py", *flags, *more), {}
            if num_ranks == 1:
                words, alone = train_words(*flags, *more), ONE_RANK
            result = run(words, tmp_path, **alone)
            assert result.code == 0, result.err
            assert f"= {num_ranks} ranks x {4 // num_ranks} micro-batches x 4" in result.out
        ends.append(torch.load(newest_checkpoint(tmp_path / name), weights_only=True))

    one, many = (steps_logged(tmp_path / name) for name in ("one", "many"))
    assert [r["step"] for r in many] == list(range(1, 13))
    for a, b in zip(one, many, strict=True):
        assert a["lr"] == b["lr"] and a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert [row["step"] for row in ends[1]["rows"]] == [4, 5, 8, 9, 12]  # and where it was ended
    for key in ("model", "ema"):
        for name, weight in ends[0][key].items():
            distance = (weight.double() - ends[1][key][name].double()).norm()
            assert distance <= 1e-3 * weight.double().norm() + 1e-6, f"{key}.{name}"
