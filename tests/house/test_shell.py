"""setup_and_train.sh: options, dry run, interrupted installation, and a short real demo."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.clones import clone
from support.commands import environment
from support.pictures import make_folder

SCRIPT = "setup_and_train.sh"


def call(folder: Path, *flags: str, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [f"./{SCRIPT}", *flags],
        cwd=folder,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--status", "--stop"], "--status and --stop exclude each other"),
        (["--demo", "--test"], "--demo and --test exclude each other"),
        (["--demo", "--quick"], "unknown option --quick; see --help"),
        (["--demo", "--max_steps", "many"], "--max_steps many: give a number from 1 up"),
        (["--demo", "--max_steps"], "--max_steps needs a value"),
        (["--demo", "--max-steps=0"], "--max_steps 0: give a number from 1 up"),
        (["--test", "--max_steps", "3"], "--max_steps is only for training"),
        (["extra"], "unknown option extra"),
    ],
)
def test_mistakes_end_with_2_and_do_nothing(tmp_path, flags, message):
    result = call(clone(tmp_path), *flags)
    assert result.returncode == 2 and f"error: {message}" in result.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("mode", ["--demo", "--test"])
def test_a_dry_run_prints_every_command_and_runs_none(tmp_path, mode):
    result = call(clone(tmp_path), mode, "--dry-run")
    assert result.returncode == 0, result.stderr
    commands = [line for line in result.stdout.splitlines() if line.startswith("+ ")]
    wanted = {"--demo": ["venv", "install", "prepare_data.py", "train.py"]}.get(
        mode, ["venv", "install", "ruff check", "ruff format", "shellcheck", "shfmt", "pytest"]
    )
    for word in wanted:
        assert any(word in command for command in commands), word
    assert not (tmp_path / ".venv").exists() and not (tmp_path / "data").exists()


def test_without_a_python_it_says_how_to_get_one(tmp_path):
    folder = clone(tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "sha256sum", "cut", "dirname"):
        (tools / name).symlink_to(shutil.which(name))
    result = call(folder, "--demo", PATH=str(tools))
    assert result.returncode == 2
    assert "no Python >= 3.11" in result.stderr and "apt-get install python3-venv" in result.stderr


def test_an_interrupted_installation_is_done_over_and_a_finished_one_not(tmp_path):
    """A pip that dies halfway, then one that works; both are stand-ins for a 3 GB download."""
    folder = clone(tmp_path / "clone")
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$*" >>{log}\ncase "$*" in "-m venv "*) mkdir -p "$3/bin" && '
        f'cp "$0" "$3/bin/python" ;; *install*) test -e {tmp_path}/works ;; esac\n'
    )
    python.chmod(0o755)

    def demo() -> tuple[int, int, int]:
        """Exit code, and how often an environment was begun and packages were installed so far."""
        code = call(folder, "--demo", PYTHON=str(python)).returncode
        lines = log.read_text().splitlines()
        return code, sum("-m venv" in x for x in lines), sum(" install " in x for x in lines)

    assert demo() == (2, 1, 1)
    (tmp_path / "works").touch()
    assert demo() == (0, 2, 2)  # from nothing
    assert demo() == (0, 2, 2)
    (folder / "requirements.txt").write_text("torch==9.9\n")
    assert demo() == (0, 2, 3)


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path):
    folder = clone(tmp_path)
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "one.jpg").touch()
    result = call(folder, "--demo", VENV=str(tmp_path / "photographs"))
    assert result.returncode == 2 and "is not empty and not an environment" in result.stderr
    assert (tmp_path / "photographs" / "one.jpg").exists()


def test_the_demo_trains_and_says_when_it_is_done(tmp_path):
    """On a smaller data set in Fashion-MNIST's place; the real one is in test_prepare_data.py."""
    folder = clone(tmp_path / "clone")
    # The environment that runs this test stands for the one that the script builds.
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    requirements = (folder / "requirements.txt").read_bytes()
    digest = hashlib.sha256(requirements * 2).hexdigest()  # what build_environment hashes for it
    (folder / ".venv" / ".stamp.requirements.txt").write_text(f"{digest}\n")
    make_folder(folder / "data" / "fashion-mnist", 90, 5)  # two steps an epoch
    for steps, text in ((2, "final top-1"), (2, "is done at step 2")):
        result = call(folder, "--demo", f"--max_steps={steps}")
        assert result.returncode == 0, result.stdout + result.stderr
        assert "data/fashion-mnist is already complete" in result.stdout
        assert text in result.stdout
        assert ("curves: runs/demo/curves.png" in result.stdout) == ("done at" not in text)
    assert (folder / "runs" / "demo" / "curves.png").exists()
