"""What happens to an environment that must be built anew, and to the one before it."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import wait_for
from support.needs import program
from support.setups import Clone, another_build, files_of

MARK = ".made_by_setup_and_train"
FAILS = ("exec touch share", "exec false share")


@pytest.fixture
def a_clone(tmp_path) -> Clone:
    a_clone = Clone(tmp_path)
    assert a_clone.demo() == (0, "VPT")
    return a_clone


def by_its_path(venv: Path) -> subprocess.Popen:
    return subprocess.Popen([venv / "bin" / "sleep", "60"])


def activated(venv: Path) -> subprocess.Popen:
    """PATH found it, so that only what is loaded tells."""
    return subprocess.Popen(["sleep", "60"], executable=venv / "bin" / "sleep")


def supervised(venv: Path) -> subprocess.Popen:
    """The supervisor, between two attempts."""
    words = ["-c", "sleep 60; true", venv / "bin" / "python", "train.py"]
    return subprocess.Popen(["sh", *words], start_new_session=True)


@pytest.mark.parametrize("begin", [by_its_path, activated, supervised])
def test_one_that_something_runs_from_stays(a_clone, begin):
    shutil.copy(program("sleep"), a_clone.venv / "bin")
    another_build(a_clone)
    before = files_of(a_clone.venv)
    process = begin(a_clone.venv)
    try:
        assert a_clone.demo()[0] == 2 and f"but process {process.pid} runs from it" in a_clone.out
        assert files_of(a_clone.venv) == before and not a_clone.old()
    finally:
        stop(process)
    a_clone.stand_in(FAILS)
    assert a_clone.demo() == (2, "VP") and a_clone.old() == [".venv.old-1"]
    a_clone.stand_in(installed=True)
    process = begin(a_clone.folder / ".venv.old-1")
    try:
        assert a_clone.demo() == (0, "PT") and a_clone.old() == [".venv.old-1"]
        assert f"stays: process {process.pid} runs from it" in a_clone.out
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    if os.getpgid(process.pid) == process.pid:
        os.killpg(process.pid, 9)
    process.kill()
    process.wait()


@pytest.mark.parametrize("users", ["", "my_own onnx"])
def test_one_with_packages_of_the_users_stays(a_clone, users):
    # Nobody asked for "dependency", and the others come with some builds and Pythons.
    for name in [*users.split(), "dependency", "nvidia_nccl_cu13", "setuptools"]:
        info = a_clone.venv / "lib" / "python3.11" / "site-packages" / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").touch()
        if name != "dependency":
            (info / "REQUESTED").touch()
    another_build(a_clone)
    assert a_clone.demo() == (0, "VPT")
    assert (f"stays: it also has {users}. Install" in a_clone.out) == bool(users)
    assert a_clone.old() == ([".venv.old-1"] if users else [])


def test_one_without_packages_is_not_kept(a_clone):
    shutil.rmtree(a_clone.venv)
    (a_clone.venv / "bin").mkdir(parents=True)
    (a_clone.venv / MARK).touch()
    a_clone.stand_in(FAILS)
    assert a_clone.demo() == (2, "VP") and "nothing was installed in it yet" in a_clone.out
    assert not a_clone.old()


@pytest.mark.parametrize("given", [True, False])
def test_the_python_of_a_new_one_is_not_that_of_the_old(a_clone, given):
    """PYTHON= names it, or it is activated."""
    inside = f'case "$*" in *_base_executable*) echo {a_clone.python}; exit ;; -c*)'
    real = ("exec python3", f"exec {sys.executable}")
    a_clone.stand_in(('case "$*" in\n    -c*)', inside), real, installed=True)
    shutil.copy(a_clone.venv / "bin" / "python", a_clone.venv / "bin" / "python3")
    a_clone.stand_in(real)
    shutil.copy(a_clone.python, a_clone.tools / "python3")
    another_build(a_clone)
    if given:
        code, done = a_clone.demo(PYTHON=str(a_clone.venv / "bin" / "python3"))
    else:
        path = f"{a_clone.venv}/bin:{a_clone.tools}:{os.environ['PATH']}"
        code, done = a_clone.demo(PYTHON="", PATH=path)
    assert (code, done) == (0, "VPT")
    python = a_clone.python if given else a_clone.tools / "python3"
    assert f"+ {python} -m venv" in a_clone.out


def test_no_environment_is_made_below_a_colon(a_clone, tmp_path):
    venv = tmp_path / "a:b" / "venv"
    assert a_clone.demo(VENV=str(venv)) == (2, "")
    assert "in a path with a colon" in a_clone.out and not venv.parent.exists()


def test_a_python_that_hangs_is_given_up(a_clone):
    a_clone.tool("hangs", "exec sleep 100")
    assert a_clone.demo(PYTHON="hangs", limit_s="1") == (2, "")
    assert "PYTHON=hangs does not start, or says nothing" in a_clone.out


def test_one_setup_at_a_time_but_a_training_keeps_none_waiting(a_clone):
    holds = "flock --nonblock .setup.log true || exit 9; want=--run_dir"
    a_clone.stand_in(("train.py*) want=--run_dir", f"train.py*) {holds}"), installed=True)
    out = a_clone.folder.parent / "out"
    words = ["bash", a_clone.folder / "setup_and_train.sh", "--demo"]
    more = os.environ | {"PYTHON": str(a_clone.python)}
    with open(a_clone.folder / ".setup.log", "a") as log, open(out, "w") as file:
        fcntl.flock(log, fcntl.LOCK_EX)
        demo = subprocess.Popen(words, env=more, stdout=file, stderr=file)
        wait_for(lambda: "another setup is running" in out.read_text(), 20)
    assert demo.wait(timeout=60) == 0 and "is up to date" in out.read_text()
