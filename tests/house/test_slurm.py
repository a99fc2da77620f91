"""launch/slurm.sbatch on two hosts of our own: stand-ins for srun and scontrol, real training."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.commands import (
    REPOSITORY,
    Result,
    finish,
    processes_mentioning,
    run,
    start,
    tiny_flags,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.needs import needs_root
from support.network import Host, two_hosts
from support.pictures import training_gate
from support.runs import assert_same_end, status_of, steps_logged

from resnet50.config import train_flags
from resnet50.config.recipes import RECIPES

SCRIPT = REPOSITORY / "launch" / "slurm.sbatch"
pytestmark = pytest.mark.usefixtures("no_leftovers")

# Starts the command on every host, passes SIGTERM on as Slurm signals a step, and waits for all,
# but not for long (--wait, here 8 s) once one has ended.
SRUN = """\
#!{python}
import json, os, signal, subprocess, sys, time
hosts = json.loads(os.environ["HOSTS"])[:int(os.environ["SLURM_JOB_NUM_NODES"])]
words = sys.argv[1:]
assert {{"--kill-on-bad-exit=0", "--wait=120", "--cpus-per-task=2"}} < set(words)
command = words[max(i for i, word in enumerate(words) if word.startswith("--cpus-per")) + 1:]
tasks = []
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
tasks += [subprocess.Popen([*enter, os.getcwd(), *command]) for enter in hosts]
while all(task.poll() is None for task in tasks):
    time.sleep(0.1)
deadline = time.monotonic() + 8
while any(task.poll() is None for task in tasks):
    time.sleep(0.1)
    if time.monotonic() > deadline:
        [task.kill() for task in tasks]
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCONTROL = """\
#!/bin/sh
case $1 in
    show) echo "$3" | tr , '\\n' ;;
    requeue) echo "$2" >>"$REQUEUED" ;;
esac
"""


class Slurm:
    """A cluster of two nodes that runs one job as often as it is requeued."""

    def __init__(self, folder: Path, hosts: list[Host]) -> None:
        self.folder, self.requeued, self.starts = folder, folder / "requeued", 0
        for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
            (folder / "bin").mkdir(exist_ok=True)
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        enter = [[str(word) for word in host.words([], folder)[:-1]] for host in hosts]
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOSTS": json.dumps(enter),
            "REQUEUED": str(self.requeued),
            "NPROC_PER_NODE": "1",
            "VENV": sys.prefix,
            "SLURM_JOB_ID": "41",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node1,node2",
            "SLURM_CPUS_PER_TASK": "2",
        }

    def start(self, *words: object, **more: str) -> subprocess.Popen:
        more = self.environment | {"SLURM_RESTART_COUNT": str(self.starts)} | more
        self.starts += 1
        return start(["bash", SCRIPT, *words], REPOSITORY, **more)

    def times_requeued(self) -> int:
        return len(self.requeued.read_text().split()) if self.requeued.exists() else 0


def words_of(flags: list[object], run_dir: Path) -> list[object]:
    return [run_dir, *(flag for flag in flags if not str(flag).startswith("--run_dir"))]


def test_its_flags_are_slurms_and_ours():
    text = SCRIPT.read_text()
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    assert text.startswith("#!")  # sbatch wants it, and its options before the first command
    assert text.index("#SBATCH") < text.index("\nset -euo pipefail") and "#SBATCH " in text
    options = set(re.findall(r"^#SBATCH (--\S+)", text, re.MULTILINE))
    assert {"--signal=TERM@120", "--requeue", "--open-mode=append", "--nodes=2"} <= options
    example = re.search(r"sbatch launch/slurm.sbatch (\S+) (.*)", text)
    parser = train_flags.build_parser({name: r.summary for name, r in RECIPES.items()}, "")
    train_flags.parse(parser, [*example[2].split(), f"--run_dir={example[1]}"])


@pytest.mark.parametrize(
    "words, text",
    [(words, "the first argument is the run folder") for words in ([], ["--seed=1"])],
)
def test_mistakes_end_with_2(tmp_path, words, text):
    result = run(["bash", SCRIPT, *words], REPOSITORY)
    assert result.code == 2 and text in result.err


def kill_a_rank(run_dir: Path) -> None:
    ranks = [pid for pid in processes_mentioning(str(run_dir)) if is_rank(pid)]
    os.kill(ranks[-1], signal.SIGKILL)


def is_rank(pid: int) -> bool:
    """Whether a process was given a rank, and is not a loader of one."""
    if b"\0LOCAL_RANK=" not in Path(f"/proc/{pid}/environ").read_bytes():
        return False
    parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    return b"torch.distributed.run" in Path(f"/proc/{parent}/cmdline").read_bytes()


@needs_root
@pytest.mark.long
def test_a_job_on_two_nodes_is_requeued_until_it_is_done(image_folder, tmp_path):
    """Crashed, then told to stop, then done; no different from one host; then refused."""
    images, run_dir = tmp_path / "images", tmp_path / "run"
    shutil.copytree(image_folder, images)
    words = words_of(tiny_flags(images, run_dir), run_dir)
    straight = run_here(train_words(*tiny_flags(image_folder, tmp_path / "straight")), tmp_path)
    assert_code(straight, 0)  # one rank's, which has the bits of two (test_ranks.py)
    with two_hosts(tmp_path / "network") as hosts:
        slurm = Slurm(tmp_path, hosts)
        gate = training_gate(images, step=3)  # after a checkpoint
        job = slurm.start(*words)
        gate.wait_for_reader()
        wait_for(lambda: (run_dir / "checkpoints" / "step_000000003.pt").exists())
        kill_a_rank(run_dir)
        crashed = finish(job)
        assert crashed.code == 75 and slurm.times_requeued() == 1, crashed.err
        assert status_of(run_dir)["state"] == "running"

        job = slurm.start(*words)  # the gate is still shut
        wait_for(lambda: "resuming at step 3" in (run_dir / "log.jsonl").read_text())
        for pid in processes_mentioning(str(tmp_path / "bin" / "srun")):
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)
        with suppress(BrokenPipeError):  # it stopped before it wanted the picture
            gate.open()
        told = finish(job)
        assert told.code == 75 and slurm.times_requeued() == 2, told.err
        assert status_of(run_dir)["state"] == "interrupted" and len(steps_logged(run_dir)) < 12

        assert_code(finish(slurm.start(*words)), 0)
        assert_same_end(tmp_path / "straight", run_dir)
        assert_code(finish(slurm.start(*words, "--seed=1")), 1)  # refused before it began
        assert slurm.times_requeued() == 2


def assert_code(result: Result, code: int) -> None:
    assert result.code == code, result.out + result.err


@needs_root
def test_on_one_node_it_is_train_py_that_restarts_and_tells(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    words = words_of(tiny_flags(image_folder, run_dir), run_dir)
    with two_hosts(tmp_path / "network") as hosts:
        slurm = Slurm(tmp_path, hosts)
        job = slurm.start(*words, "--epochs=5000", SLURM_JOB_NUM_NODES="1")
        wait_for(lambda: len(steps_logged(run_dir)) > 3)
        for pid in processes_mentioning(str(tmp_path / "bin" / "srun")):
            os.kill(pid, signal.SIGTERM)
        assert_code(finish(job), 75)
    assert slurm.times_requeued() == 1 and status_of(run_dir)["state"] == "interrupted"
