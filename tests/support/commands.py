"""The commands of this repository, run for real."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).resolve().parents[2]


PROGRAMS = Path(__file__).resolve().parent / "programs"
STARTUP = Path(__file__).resolve().parent / "startup"
PROGRAM_PATH = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}:{STARTUP}"}
# Without the shortcuts of startup/sitecustomize.py, or without one of them.
AS_USERS_HAVE_IT, WITH_CURVES = {"PYTHONPATH": ""}, {"DRAW_CURVES": "yes"}


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """This environment without any launcher's variables, one thread, quick starts, plus some."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "IMAGENET_DIR")
    clean = {key: value for key, value in os.environ.items() if key not in launcher}
    quiet = {"AWS_EC2_METADATA_DISABLED": "true"}  # no test but spot_watch's own asks for notices
    quick = {"PYTHONPATH": f"{STARTUP}"}
    return clean | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | quiet | quick | more


# What torchrun sets for a single rank; the same train.py without torchrun's five seconds.
ONE_RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}


def start(
    words: Sequence[object], cwd: Path, stdout: IO | int = subprocess.PIPE, **more: str
) -> subprocess.Popen:
    """Start a command of this repository in a folder, in a session of its own."""
    return subprocess.Popen(
        [str(word) for word in words],
        cwd=cwd,
        env=environment(**more),
        stdout=stdout,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout_s: float = 240) -> Result:
    out, err = process.communicate(timeout=timeout_s)
    return Result(process.returncode, out, err)


def run(words: Sequence[object], cwd: Path, **more: str) -> Result:
    return finish(start(words, cwd, **more))


def run_program(name: str, *words: object, cwd: Path = REPOSITORY, **more: str) -> Result:
    """A program of tests/support/programs, which may import the repository's modules."""
    return run(program_words(name, *words), cwd, **PROGRAM_PATH, **more)


def program_words(name: str, *words: object) -> list[object]:
    return [sys.executable, PROGRAMS / f"{name}.py", *words]


def host_words(name: str, *flags: object) -> list[object]:
    """A command of host/, from whatever folder."""
    path = [f"{name}={value}" for name, value in PROGRAM_PATH.items()]
    return ["env", *path, sys.executable, "-B", "-m", f"host.{name}", *flags]


def booted_words(*words: object) -> list[object]:
    """A command on a host that systemd has booted, and so takes a `shutdown`; needs root."""
    script = 'mount -t tmpfs none /run && mkdir -p /run/systemd/system && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", *words]


def train_words(*flags: object) -> list[object]:
    return [sys.executable, REPOSITORY / "train.py", *flags]


def torchrun_words(num_ranks: int, script: str | Path, *flags: object) -> list[object]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, f"--nproc_per_node={num_ranks}", REPOSITORY / script, *flags]


def tiny_flags(data_dir: Path, run_dir: Path) -> list[object]:
    """The tiny model with everything on that has state, saving every third step, in fp32."""
    return [
        "--recipe=tiny",
        f"--data_dir={data_dir}",
        f"--run_dir={run_dir}",
        "--epochs=3",
        "--ema_decay=0.9",
        "--nesterov",
        "--amp=fp32",
        "--save_every_steps=3",
        "--log_every_steps=1",
        "--clip_grad_norm=5",
        "--label_smoothing=0.1",
        "--log_every_s=0",
    ]


def wait_for(condition: Callable[[], object], timeout_s: float = 120, what: str = "") -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what or condition}"
        time.sleep(0.02)


def processes_mentioning(text: str) -> list[int]:
    """Ids of the processes, zombies apart, that have the text in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = command_line(entry)
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue  # it ended meanwhile
        if text in command and state != "Z":
            found.append(int(entry.name))
    return found


def command_line(entry: Path) -> str:
    """Of a process's folder in /proc; empty for a zombie, or a thread of the kernel.

    While one program takes the place of another (execve), the kernel shows none for a moment, and
    a shell that has just been started would go unseen.
    """
    while not (command := (entry / "cmdline").read_bytes()):
        try:
            (entry / "exe").readlink()
        except OSError:  # it has no program
            break
        time.sleep(0.001)
    return command.decode(errors="replace")


def kill(process) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
