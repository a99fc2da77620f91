"""launch/slurm.sbatch under Debian's own Slurm, on a cluster of two nodes (support/slurm.py)."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.commands import (
    REPOSITORY,
    processes_mentioning,
    run,
    tiny_flags,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.needs import needs, needs_root
from support.pictures import Gate, training_gate
from support.runs import assert_same_end, events_of, saved_steps, status_of, steps_logged
from support.slurm import Cluster, cluster

from resnet50.config import train_flags
from resnet50.config.recipes import RECIPES

SCRIPT = REPOSITORY / "launch" / "slurm.sbatch"
ENVIRONMENT = {"NPROC_PER_NODE": "1", "VENV": sys.prefix}
needs_slurm = needs("slurmctld", "slurmd", "sbatch", "munged", "mungekey")


@pytest.fixture
def slurm() -> Iterator[Cluster]:
    with cluster() as slurm:
        yield slurm


def words_of(flags: list[object], run_dir: Path) -> list[object]:
    return [SCRIPT, run_dir, *(flag for flag in flags if not str(flag).startswith("--run_dir"))]


def assert_reads_well(log: str) -> None:
    """No start of the job has what only looks like an error, or says anything twice."""
    for start in log.split("slurm.sbatch: start ")[1:]:
        for noise in ("Traceback", "Warning", "[W", "SignalException", "[rank"):
            assert noise not in start, log
        lines = [line for line in start.splitlines() if not line.startswith("slurmstepd")]
        assert len(lines) == len(set(lines)), log


def open_gate(gate: Gate) -> None:
    with suppress(BrokenPipeError):  # it stopped before it wanted the picture
        gate.open()


def test_its_flags_are_slurms_and_ours():
    text = SCRIPT.read_text()
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    assert text.startswith("#!")  # sbatch wants it, and its options before the first command
    assert text.index("#SBATCH") < text.index("\nset -euo pipefail") and "#SBATCH " in text
    options = set(re.findall(r"^#SBATCH (--\S+)", text, re.MULTILINE))
    assert {"--signal=TERM@120", "--requeue", "--open-mode=append", "--exclusive"} <= options
    example = re.search(r"sbatch launch/slurm.sbatch (\S+) (.*)", text)
    parser = train_flags.build_parser({name: r.summary for name, r in RECIPES.items()}, "")
    train_flags.parse(parser, [*example[2].split(), f"--run_dir={example[1]}"])


@needs_root
@needs_slurm
@pytest.mark.parametrize(
    ("options", "gpus"),
    [((), "0,1"), (("--oversubscribe", "--gpus-per-node=1", "--cpus-per-task=1"), "0")],
)
def test_training_has_the_gpus_of_its_job(tmp_path, options, gpus):
    """All of the node's; or a part. The interpreter of this environment says what it sees."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "GPUs $CUDA_VISIBLE_DEVICES: $*"\n')
    python.chmod(0o755)
    with cluster(gpus=2) as slurm:
        job = slurm.submit(*options, SCRIPT, tmp_path / "run", VENV=str(tmp_path))
        slurm.wait_for(job, "COMPLETED")
        assert f"GPUs {gpus}: train.py --run_dir={tmp_path / 'run'}\n" in slurm.log(job)


def in_script(words: str, folder: Path, **more: str) -> subprocess.CompletedProcess:
    """Bash with the script's functions, and programs of the test's own in `folder`."""
    script = f'source <(sed "/^main /d" {SCRIPT}); {words}'
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=os.environ | path | more,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_controller_that_is_away_for_a_moment_does_not_cost_the_requeue(tmp_path):
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\n[ $1 != show ]\n')
    (tmp_path / "scontrol").chmod(0o755)
    assert in_script("requeue", tmp_path).returncode == 0
    assert (tmp_path / "calls").read_text().splitlines() == ["show job 7", "requeue 7"]


@pytest.mark.parametrize(
    ("before", "flags", "restarts", "is_progress"),
    [
        ("", "", "3", True),
        ("", "--mirror=s3://b/run", "0", True),
        ("", "--mirror=s3://b/run", "1", False),  # it may have been restored from there
        ("checkpoints/step_000000003.pt", "--mirror s3://b/run", "1", True),
        ("checkpoints/step_000000004.pt", "", "0", False),
    ],
)
def test_a_restored_checkpoint_is_no_progress(tmp_path, before, flags, restarts, is_progress):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step_000000004.pt").touch()
    before = before and f"./{before}"
    words = f"run_dir=. before={before}; if made_progress {flags}; then echo yes; fi"
    result = in_script(words, tmp_path, SLURM_RESTART_COUNT=restarts)
    assert (result.stdout, result.stderr) == ("yes\n" if is_progress else "", "")


def straight_run(image_folder: Path, folder: Path) -> Path:
    """A run that nothing interrupts; one rank has the bits of two (test_ranks.py)."""
    result = run_here(train_words(*tiny_flags(image_folder, folder / "straight")), folder)
    assert result.code == 0, result.err
    return folder / "straight"


@needs_root
@needs_slurm
def test_two_nodes_are_told_in_time_and_no_bit_differs(image_folder, tmp_path, slurm):
    """Saved, requeued and resumed; it ends as if nothing was."""
    images, run_dir = tmp_path / "images", tmp_path / "run"
    shutil.copytree(image_folder, images)
    gate = training_gate(images, step=3)
    words = words_of(tiny_flags(images, run_dir), run_dir)
    job = slurm.submit("--nodes=2", *words, **ENVIRONMENT)
    gate.wait_for_reader()
    wait_for(lambda: len(steps_logged(run_dir)) == 3)
    slurm.update(job, TimeLimit=2)  # within the script's 120 s before the end
    wait_for(lambda: slurm.has_signaled(job, signal.SIGTERM), what="the signal")
    time.sleep(0.5)
    open_gate(gate)
    slurm.wait_for(job, "PENDING")
    step = status_of(run_dir)["step"]
    assert status_of(run_dir)["state"] == "interrupted" and 3 <= step <= 4
    assert max(saved_steps(run_dir)) == step
    slurm.start_now(job, TimeLimit=60)
    assert slurm.wait_for(job, "COMPLETED")["Restarts"] == "1"
    assert f"resuming at step {step} of 12" in events_of(run_dir)
    assert_reads_well(slurm.log(job))
    assert_same_end(straight_run(image_folder, tmp_path), run_dir)


@needs_root
@needs_slurm
def test_a_job_gives_way_to_a_more_urgent_one_and_is_canceled(image_folder, tmp_path, slurm):
    """On one node. Saved each time; requeued, by Slurm itself, and then not."""
    run_dir = tmp_path / "run"
    words = words_of(tiny_flags(image_folder, run_dir), run_dir)
    job = slurm.submit(*words, "--epochs=5000", **ENVIRONMENT)
    wait_for(lambda: len(steps_logged(run_dir)) > 3)
    urgent = slurm.submit("--partition=urgent", "--nodes=2", "--wrap=sleep 1")
    slurm.wait_for(urgent, "COMPLETED")
    assert slurm.show(job)["JobState"] == "PENDING"
    step = status_of(run_dir)["step"]
    assert status_of(run_dir)["state"] == "interrupted" and step in saved_steps(run_dir)

    slurm.start_now(job)
    wait_for(lambda: f"resuming at step {step} of 20000" in events_of(run_dir))
    wait_for(lambda: len(steps_logged(run_dir)) > step + 3)
    slurm.call("scancel", job)
    slurm.wait_for(job, "CANCELLED")
    last = status_of(run_dir)["step"]
    assert status_of(run_dir)["state"] == "interrupted" and last in saved_steps(run_dir)
    assert last > step and slurm.show(job)["Restarts"] == "1"
    assert_reads_well(slurm.log(job))


@needs_root
@needs_slurm
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_node_dies_and_a_crash_is_requeued_only_if_it_saved(image_folder, tmp_path, slurm):
    """Slurm requeues what ran on a dead node; the script requeues a crash, but not a second one."""
    images, run_dir = tmp_path / "images", tmp_path / "run"
    shutil.copytree(image_folder, images)
    words = words_of(tiny_flags(images, run_dir), run_dir)
    gate = training_gate(images, step=3)
    job = slurm.submit("--nodes=2", *words, **ENVIRONMENT)
    gate.wait_for_reader()
    wait_for(lambda: 3 in saved_steps(run_dir))
    slurm.kill_node("n1")
    slurm.wait_for(job, "PENDING")
    open_gate(gate)
    slurm.start_node("n1")
    for saved_step, state in ((3, "PENDING"), (4, "FAILED")):  # step 4 ends an epoch
        gate = training_gate(images, step=5)
        slurm.start_now(job)
        gate.wait_for_reader()
        wait_for(lambda: 4 in saved_steps(run_dir) and len(steps_logged(run_dir)) == 5)
        assert f"resuming at step {saved_step} of 12" in events_of(run_dir)
        kill_a_rank(run_dir)
        open_gate(gate)
        ended = slurm.wait_for(job, state)
    assert (ended["ExitCode"], ended["Restarts"]) == ("1:0", "2"), slurm.log(job)
    refused = slurm.submit("--nodes=2", *words, "--seed=1", **ENVIRONMENT)
    assert slurm.wait_for(refused, "FAILED")["ExitCode"] == "2:0"
    assert slurm.log(refused).count("cannot be resumed with different settings: --seed 1") == 1
    slurm.wait_for(slurm.submit("--nodes=2", *words, **ENVIRONMENT), "COMPLETED")
    assert_same_end(straight_run(image_folder, tmp_path), run_dir)


def kill_a_rank(run_dir: Path) -> None:
    ranks = [pid for pid in processes_mentioning(str(run_dir)) if is_rank(pid)]
    os.kill(ranks[-1], signal.SIGKILL)


def is_rank(pid: int) -> bool:
    """Whether a process was given a rank, and is not a loader of one."""
    if b"\0LOCAL_RANK=" not in Path(f"/proc/{pid}/environ").read_bytes():
        return False
    parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    return b"torch.distributed.run" in Path(f"/proc/{parent}/cmdline").read_bytes()


@dataclass(frozen=True)
class Mistake:
    """A job that must not begin: how it is submitted, and what its log says."""

    message: str
    options: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    run_dir: Path | None = None
    cwd: Path = REPOSITORY
    environment: dict[str, str] = field(default_factory=lambda: ENVIRONMENT)


def assert_refused(slurm: Cluster, image_folder: Path, folder: Path, *mistakes: Mistake) -> None:
    """All at once, on parts of the nodes: one message each, code 2, and out of the queue."""
    jobs = []
    for number, mistake in enumerate(mistakes):
        run_dir = mistake.run_dir or folder / f"run{number}"
        words = [*words_of(tiny_flags(image_folder, run_dir), run_dir), *mistake.flags]
        options = ["--oversubscribe", *mistake.options]
        jobs.append(slurm.submit(*options, *words, cwd=mistake.cwd, **mistake.environment))
    for job, mistake in zip(jobs, mistakes, strict=True):
        ended, log = slurm.wait_for(job, "FAILED"), slurm.log(job)
        assert (ended["ExitCode"], ended["Restarts"]) == ("2:0", "0"), log
        assert mistake.message in log and "Traceback" not in log, log
        errors = [line for line in log.splitlines() if "error: " in line and line[:5] != "srun:"]
        assert len(errors) == 1, log


@needs_root
@needs_slurm
def test_mistakes_are_named_once_and_stay_out_of_the_queue(image_folder, tmp_path, slurm):
    no_gpu = "no GPU on n0: ask for nodes that have some, for example with sbatch --partition=NAME "
    one_batch = ("--total_batch_size=8", "--device_batch_size=8")
    assert_refused(
        slurm,
        image_folder,
        tmp_path,
        Mistake("no train.py in", cwd=tmp_path),
        Mistake("no environment in /none: ", environment=ENVIRONMENT | {"VENV": "/none"}),
        Mistake(no_gpu, ("--nodelist=n0",), environment={"VENV": sys.prefix}),
        Mistake("unrecognized arguments: --epoch=3", flags=("--epoch=3",)),
        Mistake("does not divide over 2 ranks: start 1 of them", ("--nodes=2",), one_batch),
    )


@needs_root
@needs_slurm
@pytest.mark.long
def test_a_run_folder_that_the_nodes_do_not_share_is_refused(image_folder, tmp_path, slurm):
    """Each rank looks, for a minute, for what rank 0 has written there."""
    message = "is not the same folder on all hosts: it must be on a file system that they share"
    run_dir = slurm.local / "run"
    mistake = Mistake(message, options=("--nodes=2",), run_dir=run_dir)
    assert_refused(slurm, image_folder, tmp_path, mistake)


@pytest.mark.parametrize("words", [[], ["--seed=1"]])
def test_a_job_without_a_run_folder_is_refused(words):
    result = run(["bash", SCRIPT, *words], REPOSITORY)
    assert result.code == 2 and "the first argument is the run folder" in result.err
