"""A checkpoint is whole or not there, and whatever is wrong with a file is noticed."""

import ast
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from support.commands import PROGRAM_PATH, REPOSITORY, environment, program_words, run
from support.needs import needs, needs_root
from support.runs import assert_same

from resnet50.records import checkpoint, weight_files

STATE = {
    "model": {"w": torch.arange(600, dtype=torch.float32), "n": torch.tensor(3)},
    "step": 7,
    "ema": None,
    "rows": [{"epoch": 1.0, "val_top1": None}],
    "config": {"layers": [1, 1, 1, 1], "amp": "fp32"},
}


def said_nothing(text: str) -> None:
    raise AssertionError(text)


def test_what_is_saved_is_loaded(tmp_path):
    path = checkpoint.save(tmp_path / "checkpoints", 1200, STATE)
    assert path.name == "step_000001200.pt"
    assert_same(checkpoint.load(path), STATE, "state")
    assert_same(torch.load(path, weights_only=True), STATE, "state")  # by torch alone
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    assert checkpoint.recover_newest(tmp_path / "checkpoints", said_nothing) == 1200


def test_the_trailer_is_the_sha256_of_the_rest(tmp_path):
    path = checkpoint.save(tmp_path, 1, STATE)
    content = path.read_bytes()
    head, trailer = tmp_path / "head", content[-73:]
    head.write_bytes(content[:-73])
    printed = subprocess.run(["sha256sum", head], capture_output=True, text=True, check=True)
    assert trailer == f"\nsha256 {printed.stdout.split()[0]}\n".encode()


def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path):
    path = checkpoint.save(tmp_path, 1, STATE)
    good = path.read_bytes()
    rng = random.Random(0)
    for _ in range(1000):
        bit = rng.randrange(len(good) * 8)
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(
            checkpoint.DamagedCheckpointError, match=r"step_000000001\.pt is damaged"
        ):
            checkpoint.load(path)
    for size in [0, 1, 72, 73, *rng.sample(range(len(good)), 200)]:
        path.write_bytes(good[:size])
        with pytest.raises(checkpoint.DamagedCheckpointError):
            checkpoint.load(path)
    path.write_bytes(good + b"\n")
    with pytest.raises(checkpoint.DamagedCheckpointError):
        checkpoint.load(path)


def test_falls_back_past_damaged_and_foreign_files_and_keeps_them(tmp_path):
    for step in (3, 20, 100):
        checkpoint.save(tmp_path, step, STATE | {"step": step})
    newest = checkpoint.step_path(tmp_path, 100)
    newest.write_bytes(newest.read_bytes()[:-100])
    torch.save(STATE, checkpoint.step_path(tmp_path, 1000))  # by someone else, without a sha256
    said = []
    assert checkpoint.recover_newest(tmp_path, said.append, may_rename=False) == 20 and not said
    assert checkpoint.recover_newest(tmp_path, said.append) == 20
    assert len(said) == 2 and all("resuming from step 20" in text for text in said)
    assert (tmp_path / "step_000000100.pt.corrupt").exists()
    assert (tmp_path / "step_000001000.pt.corrupt").exists()
    assert checkpoint.recover_newest(tmp_path, said_nothing) == 20


def test_starting_over_is_refused_when_nothing_is_whole(tmp_path):
    checkpoint.step_path(tmp_path, 5).write_bytes(b"junk")
    with pytest.raises(checkpoint.DamagedCheckpointError, match=r"no checkpoint in .* is whole"):
        checkpoint.recover_newest(tmp_path, said_nothing)
    assert checkpoint.step_path(tmp_path, 5).exists()
    assert checkpoint.recover_newest(tmp_path / "none", said_nothing) == -1


def test_newest_few_are_kept_and_the_best_for_ever(tmp_path):
    for step in (9, 10, 11, 100):
        path = checkpoint.save(tmp_path, step, STATE | {"step": step})
        if step == 9:
            checkpoint.mark_best(path)
        (tmp_path / "step_000000012.pt.partial").write_bytes(b"left behind by a kill")
        checkpoint.prune(tmp_path, 2)
    assert checkpoint.steps_in(tmp_path) == [11, 100]
    assert (
        sorted(p.name for p in tmp_path.iterdir())[0] == "best.pt"
        and len(list(tmp_path.iterdir())) == 3
    )
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 9
    path = checkpoint.step_path(tmp_path, 100)
    checkpoint.mark_best(path)
    assert (tmp_path / "best.pt").samefile(path)


def test_a_hostile_file_is_refused_and_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    path = tmp_path / "weights.pt"
    torch.save({"model": Hostile()}, path)
    with pytest.raises(ValueError, match=r"--weights .*weights\.pt holds more than tensors"):
        weight_files.read(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content, message",
    [(None, "No such file"), (b"", "is empty"), (b"x" * 500, "not a file of tensors")],
)
def test_files_that_are_no_weights_are_named(tmp_path, content, message):
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"--weights .*weights.pt.*{message}"):
        weight_files.read(path)


def test_a_kill_at_any_moment_of_a_save_loses_nothing(tmp_path):
    rng = random.Random(1)
    for _ in range(4):
        process = subprocess.Popen(
            program_words("save_for_ever", tmp_path),
            env=environment(**PROGRAM_PATH),
            stdout=subprocess.PIPE,
            text=True,
        )
        reported = int(process.stdout.readline())
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        reported = int((process.communicate()[0].split() or [reported])[-1])
        newest = checkpoint.recover_newest(tmp_path, said_nothing)
        assert newest >= reported
        state = checkpoint.load(checkpoint.step_path(tmp_path, newest))
        assert state["step"] == newest and (state["w"] == newest).all()


@needs_root
def test_a_full_disk_costs_the_new_file_and_not_the_old_one(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        big = STATE | {"w": torch.zeros(150_000)}  # 0.6 MB: one fits, two do not
        checkpoint.save(tmp_path, 1, big)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(tmp_path, 2, big)
        assert os.listdir(tmp_path) == ["step_000000001.pt"]
        checkpoint.load(checkpoint.step_path(tmp_path, 1))
        checkpoint.step_path(tmp_path, 1).unlink()
        checkpoint.save(tmp_path, 3, big)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_nothing_in_the_tree_unpickles_code():
    paths = [
        *REPOSITORY.glob("*.py"),
        *REPOSITORY.glob("resnet50/*/*.py"),
        *REPOSITORY.glob("host/*.py"),
    ]
    assert len(paths) > 80
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            words = ast.unparse(node) if isinstance(node, ast.Call | ast.Import) else ""
            assert "import pickle" not in words.replace("import pickletools", ""), path
            if words.startswith(("torch.load(", "torch.jit.load(", "pickle.")):
                assert words.startswith("torch.load(") and "weights_only=True" in words, path


@needs("strace")
@pytest.mark.parametrize(
    "name", ["EPERM", pytest.param("EOPNOTSUPP", marks=pytest.mark.long), "EIO"]
)
def test_where_there_are_no_hard_links_the_best_one_is_a_copy(tmp_path, name):
    path = checkpoint.save(tmp_path, 3, {"step": 3})
    refuse = ["strace", "-f", "-o", "/dev/null", "-e", f"inject=link,linkat:error={name}"]
    result = run([*refuse, *program_words("mark_best", path)], tmp_path, **PROGRAM_PATH)
    assert (result.code == 0) == (name != "EIO"), result.err
    assert (tmp_path / "best.pt").exists() == (name != "EIO")
    if name != "EIO":
        assert (tmp_path / "best.pt").read_bytes() == path.read_bytes()
        assert path.stat().st_nlink == 1
