"""SIGTERM to torchrun itself, which passes it to the ranks and their loaders at once: saved, ended,
and at most the step it came in repeated. SIGHUP changes nothing.

tests/promises/test_resume.py and tests/promises/test_supervisor.py have signals to a rank's whole
group and to `python train.py`; tests/promises/test_save_now.py has SIGUSR1;
tests/promises/test_spot_runs.py spot notices.
"""

import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from support.commands import (
    AS_USERS_HAVE_IT,
    REPOSITORY,
    finish,
    processes_mentioning,
    start,
    wait_for,
)
from support.kills import assert_as_if_nothing_was, assert_no_orphans, flags_of
from support.pictures import training_gate, validation_gate
from support.runs import events_of, newest_checkpoint, status_of, steps_logged

pytestmark = pytest.mark.usefixtures("no_leftovers")
ENDS_WITHIN_S = 5.0 * 4  # 5 s, with slack for a busy machine
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TORCHRUN += ["--signals-to-handle=SIGTERM,SIGINT,SIGQUIT"]  # without SIGHUP


@pytest.fixture
def words(image_folder, tmp_path) -> list[object]:
    """Two ranks with two loaders each, on images of their own, which save at epochs' ends only."""
    shutil.copytree(image_folder, tmp_path / "images")
    flags = flags_of(tmp_path / "images", tmp_path / "run", "--num_workers=2")
    flags += ["--save_every_steps=0", f"--data_dir={tmp_path / 'images'}"]
    return [sys.executable, *TORCHRUN, REPOSITORY / "train.py", *flags]


def listens(pid: int) -> bool:
    """Whether a process catches SIGTERM."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1]
    return bool(int(caught, 16) >> signal.SIGTERM - 1 & 1)


def ranks_listen(run_dir: Path, torchrun_pid: int) -> bool:
    others = [pid for pid in processes_mentioning(str(run_dir)) if pid != torchrun_pid]
    return len(others) >= 2 and all(map(listens, others[:2]))


def stop(process, run_dir, gate=None) -> int:
    """SIGTERM to torchrun alone; then it ends in time and leaves no process. The step it saved."""
    logged = len(steps_logged(run_dir))
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    if gate:
        time.sleep(0.3)  # the signal arrives while the ranks wait for the picture
        gate.open()
    result = finish(process)
    assert time.monotonic() - began < ENDS_WITHIN_S
    assert_no_orphans(run_dir, timeout_s=5)
    assert status_of(run_dir)["state"] == "interrupted", result.err
    assert "the same command" in result.err.splitlines()[-1], "after torchrun's traceback"
    step = status_of(run_dir).get("step", 0)
    assert logged <= step <= logged + 1
    if step:
        assert torch.load(newest_checkpoint(run_dir), weights_only=True)["step"] == step
    return step


def test_sigterm_to_torchrun_costs_a_step_at_most(image_folder, words, tmp_path):
    """In start-up, in training and in evaluation; the run then ends as if nothing had happened."""
    run_dir, images = tmp_path / "run", tmp_path / "images"
    process = start(words, tmp_path, **AS_USERS_HAVE_IT)  # seconds from there to the first step
    wait_for(lambda: ranks_listen(run_dir, process.pid))
    wait_for(lambda: status_of(run_dir).get("state") == "running")
    stop(process, run_dir)
    assert len(steps_logged(run_dir)) <= 1

    gate = training_gate(images, step=2)
    process = start(words, tmp_path)
    gate.wait_for_reader()
    wait_for(lambda: len(steps_logged(run_dir)) == 2)
    assert stop(process, run_dir, gate) in (2, 3)

    gate = validation_gate(images)
    process = start(words, tmp_path)
    gate.wait_for_reader()
    wait_for(lambda: len(steps_logged(run_dir)) == 4)
    assert stop(process, run_dir, gate) == 4

    process = start(["nohup", *words], tmp_path)  # which torchrun by itself would undo
    wait_for(lambda: len(steps_logged(run_dir)) >= 6)
    process.send_signal(signal.SIGHUP)
    result = finish(process)
    assert result.code == 0, result.err
    assert not [text for text in events_of(run_dir) if "decoded" in text], "the gate's own fault"
    assert_as_if_nothing_was(image_folder, run_dir)


@pytest.mark.long
def test_sigterm_before_a_rank_listens_ends_all_of_it(image_folder, words, tmp_path):
    """While one still imports, the other may wait for it: until torchrun kills it, after 30 s."""
    run_dir = tmp_path / "run"
    process = start(words, tmp_path)
    wait_for(lambda: len(processes_mentioning(str(run_dir))) == 3)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert finish(process).code == 1
    assert time.monotonic() - began < 30 + ENDS_WITHIN_S
    assert_no_orphans(run_dir, timeout_s=5)
    assert not steps_logged(run_dir)
