"""Each command reports a Python that cannot run it, at once and in one line."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import REPOSITORY, environment

COMMANDS = ("train", "lr_finder", "prepare_data", "evaluate", "bench", "export", "app")


def said(words: list[object], cwd: Path, **more: str) -> str:
    """The only line of output of a command that exits with 2."""
    result = subprocess.run(
        list(map(str, words)), cwd=cwd, env=environment(**more), capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_an_environment_that_is_not_activated_is_named(tmp_path, command):
    # -S: without site-packages, like a bare system Python.
    line = said([sys.executable, "-S", REPOSITORY / f"{command}.py", "--help"], tmp_path)
    assert line.startswith(f"{command}.py: error: this Python ({sys.executable}) has no package ")
    assert "requirements.txt" in line or "bin/python" in line


def test_ctrl_c_while_packages_load_is_a_line_and_no_traceback(tmp_path):
    """Imports take seconds, and the command's own handling begins after them."""
    (tmp_path / "numpy.py").write_text("import signal; signal.raise_signal(signal.SIGINT)\n")
    result = subprocess.run(
        [sys.executable, REPOSITORY / "evaluate.py", "--help"],
        env=environment(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (-signal.SIGINT, "evaluate.py: interrupted\n")


@pytest.fixture
def clone(tmp_path) -> Path:
    shutil.copytree(REPOSITORY / "resnet50" / "system", tmp_path / "clone" / "resnet50" / "system")
    shutil.copy(REPOSITORY / "train.py", tmp_path / "clone")
    return tmp_path / "clone"


def test_the_environment_beside_the_commands_is_the_remedy(clone, tmp_path):
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "python").touch()
    line = said([sys.executable, "-S", clone / "train.py"], tmp_path)
    assert f"use the environment's, {clone}/.venv/bin/python" in line


@pytest.mark.parametrize("name", ["random", "queue/__init__", "torch", "numpy/__init__"])
def test_a_file_that_hides_a_module_is_named(clone, tmp_path, name):
    hiding = clone / f"{name}.py"
    hiding.parent.mkdir(exist_ok=True)
    hiding.write_text("raise SystemExit('imported')\n")
    for harmless in ("dataset", "test"):
        (clone / f"{harmless}.py").touch()
    (clone / "statistics").mkdir()
    line = said([sys.executable, clone / "train.py"], tmp_path)
    module, slash, _ = name.partition("/")
    path = clone / (module if slash else f"{module}.py")
    assert f"{path} hides the module {module} " in line and "rename it" in line


def test_on_the_path_too(clone, tmp_path):
    (tmp_path / "random").with_suffix(".py").write_text("raise SystemExit('imported')\n")
    line = said([sys.executable, clone / "train.py"], tmp_path, PYTHONPATH=str(tmp_path))
    assert f"{tmp_path / 'random'}.py hides the module random" in line
