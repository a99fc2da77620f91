"""host/environment.sh: which Python it takes, what it installs, and what it leaves alone.

An interpreter that makes environments of itself stands for pip's 3 GB and for the training.
"""

import itertools
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.devices import Host
from support.needs import needs_root, program
from support.setups import DRIVER_550, Clone, another_build, files_of

MARK = ".made_by_setup_and_train"
FAILED = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
CU126 = "https://download.pytorch.org/whl/cu126"


@pytest.fixture
def a_clone(tmp_path) -> Clone:
    return Clone(tmp_path)


def test_what_was_interrupted_continues_and_what_is_done_is_not_repeated(a_clone):
    a_clone.stand_in(("exec touch share", "exec false share"))
    assert a_clone.demo() == (2, "VP") and "is there a network?" in a_clone.out
    packages = a_clone.venv / "lib" / "python3.11" / "site-packages"
    for name in ("whole", "half"):
        (packages / f"{name}-1.dist-info").mkdir(parents=True)
    (packages / "whole-1.dist-info" / "INSTALLER").touch()
    a_clone.stand_in(installed=True)
    assert a_clone.demo() == (0, "PT")
    assert os.listdir(packages) == ["whole-1.dist-info"]  # pip looks for the other one again
    assert a_clone.demo() == (0, "") and "is up to date" in a_clone.out
    (a_clone.folder / "requirements.txt").write_text("torch==9.9\n")
    assert a_clone.demo() == (0, "PT") and "torch===9.9" in a_clone.out
    assert not a_clone.old() and not (a_clone.venv / ".tmp").exists()


def test_the_client_for_buckets_is_installed_only_if_it_is_asked_for(a_clone):
    """In the version that host/constraints.txt has, once; and never taken away."""
    flags = [f"--data_dir={a_clone.images}", "--cpu", "--only=env"]
    from_bucket = [*flags, "--data_from=s3://bucket/imagenet"]
    for more in ([], [f"--mirror={a_clone.folder}/mirror", "--data_from=https://host/imagenet"]):
        result = a_clone.run(*flags, *more)
        assert result.returncode == 0 and "obstore" not in result.stdout, result.stdout
    result = a_clone.run(*flags, "--mirror=s3://bucket/runs")
    assert result.returncode == 0 and "torchvision===0.29.1 obstore\n" in result.stdout
    pins = (a_clone.folder / "host" / "constraints.txt").read_text().splitlines()
    (version,) = (line.partition("==")[2] for line in pins if line.startswith("obstore=="))
    packages = a_clone.venv / "lib" / "python3.11" / "site-packages"
    for found, says in (("0.1", " obstore\n"), (version, "is up to date")):
        (packages / f"obstore-{found}.dist-info").mkdir(parents=True)
        (packages / f"obstore-{found}.dist-info" / "INSTALLER").touch()
        result = a_clone.run(*from_bucket)
        assert result.returncode == 0 and says in result.stdout, result.stdout
    assert "is up to date" in a_clone.run(*flags).stdout


@pytest.mark.parametrize("works", [True, False])
def test_uv_is_used_where_it_is_there_and_pip_has_no_settings(a_clone, works):
    """pip then only looks whether all is there, or does it all."""
    a_clone.tool("uv", f"touch {a_clone.folder}/asked; {'true' if works else 'false'}")
    assert a_clone.demo() == (0, "VPT") and "uv pip install" not in a_clone.out
    (a_clone.folder / "requirements.txt").write_text("torch==9.9\n")
    a_clone.stand_in(("echo \"global.no-index='1'\"", "true"), installed=True)
    assert a_clone.demo() == (0, "PT") and (a_clone.folder / "asked").exists()
    assert f"3600 uv pip install --quiet --python {a_clone.venv}/bin/python -c" in a_clone.out
    assert ("continuing with pip" in a_clone.out) == (not works)
    (a_clone.venv / ".lock").touch()  # which uv leaves behind
    no_python(a_clone)
    assert a_clone.demo() == (0, "VPT") and not a_clone.old()


@pytest.mark.parametrize(
    "says, text, is_network",
    [
        ("No space left on device", "the disk of {} is full", False),
        ("ResolutionImpossible: see pip's pages", "their versions contradict each other", False),
        ("No matching distribution found for x", "{}/bin/python -m pip config list", True),
    ],
)
def test_why_packages_cannot_be_installed(a_clone, says, text, is_network):
    a_clone.stand_in(("sleep 0.05; cd", f'echo "ERROR: {says}" >&2; exit 1; cd'))
    assert a_clone.demo() == (2, "VP") and text.format(a_clone.venv) in a_clone.out
    assert ("network" in a_clone.out) == is_network


@pytest.mark.parametrize(
    "end, text", [("echo NO GOOD; exit 2", "NO GOOD"), ("exit 132", "ended with 132")]
)
def test_after_a_failed_smoke_test_only_that_is_repeated(a_clone, end, text):
    test = 'test -f "${0%/bin/python}/share/installed"'
    a_clone.stand_in((test, f"test -f {a_clone.folder}/good || {{ {end}; }}"))
    assert a_clone.demo() == (2, "VPT") and text in a_clone.out
    assert a_clone.demo() == (2, "T")
    (a_clone.folder / "good").touch()
    assert a_clone.demo() == (0, "T")
    assert a_clone.demo() == (0, "")


def environment_of_the_users(folder: Path) -> None:
    """As `uv venv` makes one, without pip, and with work in it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    next(folder.glob("lib/*/site-packages")).joinpath("my_own_work").mkdir()


def project(folder: Path) -> None:
    """`python -m venv .` in a folder with something else."""
    (folder / "bin").mkdir(parents=True)
    shutil.copy(folder.parent.parent / "python", folder / "bin")  # which has pip
    (folder / "pyvenv.cfg").touch()
    (folder / "thesis.txt").touch()


@pytest.mark.parametrize("make", [environment_of_the_users, project, Path.touch])
def test_what_is_not_ours_is_left_alone(a_clone, make):
    make(a_clone.venv)
    before = files_of(a_clone.venv)
    result = a_clone.run("--demo")
    assert result.returncode == 2 and f"{a_clone.venv} was not made by this script" in result.stdout
    assert "VENV=DIR" in result.stdout and files_of(a_clone.venv) == before and not a_clone.old()


def no_python(a_clone: Clone) -> None:
    (a_clone.venv / "bin" / "python").unlink()


def newer_python(a_clone: Clone) -> None:
    """A link to /usr/bin/python3, which is a later one now, for which there are no packages."""
    a_clone.tool("python3.12", f'case "$*" in -c*) exit 1 ;; esac; exec {a_clone.python} "$@"')
    no_python(a_clone)
    (a_clone.venv / "bin" / "python").symlink_to(a_clone.tools / "python3.12")


def given_python(a_clone: Clone) -> None:
    """PYTHON= is another version than that of the environment."""
    python = a_clone.venv / "bin" / "python"
    python.write_text(python.read_text().replace("echo 3.11", "echo 3.12"))


def made_before_the_mark(a_clone: Clone) -> None:
    (a_clone.venv / MARK).unlink()
    no_python(a_clone)


REASONS = [another_build, no_python, newer_python, given_python, made_before_the_mark]


@pytest.mark.parametrize("reason", REASONS)
def test_what_must_be_replaced_is_kept_until_the_new_one_works(a_clone, reason):
    assert a_clone.demo() == (0, "VPT")
    (a_clone.venv / "share" / "mine").touch()
    reason(a_clone)
    a_clone.stand_in(("exec touch share", "exec false share"))
    assert a_clone.demo() == (2, "VP")
    assert a_clone.old() == [".venv.old-1"] and f"renamed to {a_clone.venv}.old-1" in a_clone.out
    assert (a_clone.folder / ".venv.old-1" / "share" / "mine").exists()
    a_clone.stand_in(installed=True)
    assert a_clone.demo() == (0, "PT")
    assert not a_clone.old() and f"removing the one before it, {a_clone.venv}.old-1" in a_clone.out


def test_nothing_else_in_its_folder_is_moved_or_removed(a_clone):
    assert a_clone.demo() == (0, "VPT")
    (a_clone.venv / "thesis.txt").touch()
    another_build(a_clone)
    before = files_of(a_clone.venv)
    assert a_clone.demo()[0] == 2 and "but also holds thesis.txt" in a_clone.out
    assert files_of(a_clone.venv) == before
    (a_clone.venv / "thesis.txt").unlink()
    for name in (".venv.old-1", ".venv.old-2"):  # copies that the user made
        shutil.copytree(a_clone.venv, a_clone.folder / name)
    (a_clone.folder / ".venv.old-2" / ".set_aside").touch()
    (a_clone.folder / ".venv.old-2" / "thesis.txt").touch()
    assert a_clone.demo() == (0, "VPT")
    assert a_clone.old() == [".venv.old-1", ".venv.old-2"]  # .old-3 was removed


def test_demo_test_and_training_share_an_environment(a_clone):
    """On a driver for which PyPI's build is too new."""
    a_clone.tool("nvidia-smi", DRIVER_550)
    assert a_clone.demo() == (0, "VPT")
    torch = next(line for line in a_clone.out.splitlines() if "--index-url" in line)
    assert f"--index-url {CU126} torch===2.14.1+cu126 torchvision===" in torch
    for flags in (["--only=env"], ["--only=env", "--cpu"]):
        result = a_clone.run(f"--data_dir={a_clone.images}", *flags)
        assert result.returncode == 0 and "is up to date" in result.stdout, result.stdout
    result = a_clone.run("--test", "--dry_run")
    assert result.returncode == 0 and "-m venv" not in result.stdout
    assert "-r requirements-dev.txt torch===2.14.1+cu126" in result.stdout
    a_clone.tool("nvidia-smi", f'echo "{FAILED}"; exit 9')
    assert a_clone.demo() == (0, "")


def test_a_gpu_that_cannot_be_used_leaves_the_cpu(a_clone):
    a_clone.tool("nvidia-smi", f'echo "{FAILED}"; exit 9')
    assert a_clone.demo() == (0, "VPT")
    assert "warning: nvidia-smi fails" in a_clone.out and "--device cpu" in a_clone.out
    data_dir = f"--data_dir={a_clone.images}"
    result = a_clone.run(data_dir, "--only=host,env")
    assert result.returncode == 2 and FAILED in result.stdout
    a_clone.tool("nvidia-smi", f"touch {a_clone.folder}/asked")
    result = a_clone.run(data_dir, "--only=host,env", "--cpu")
    assert result.returncode == 0 and not (a_clone.folder / "asked").exists(), result.stdout


def python_of(version: str, **lacks: bool) -> str:
    """The script of a stand-in for a Python of a version; host/ runs with a real one."""
    venv = "exit 1" if lacks.get("venv") else "exit 0"
    return (
        f'case "$*" in -c*ensurepip*) {venv} ;; -c*) echo {version} ;; '
        f'*) exec {sys.executable} "$@" ;; esac'
    )


# Programs that the script needs besides Python; what else is on PATH here does not exist there.
NEEDED = ("bash", "sh", "cat", "sed", "sha256sum", "cut", "dirname", "basename", "realpath", "id",
          "date", "grep", "ls", "tee", "tail", "flock", "mkdir", "touch", "timeout", "env",
          "findmnt", "rm", "mv", "cksum")  # fmt: skip
OLD, NEW = "3.9", "3.15"


@pytest.mark.parametrize(
    "pythons, flags, given, code, text",
    [
        # Amazon Linux 2023, RHEL 9: python3 is 3.9, and a newer one is beside it.
        ({"python3": OLD, "python3.11": "3.11"}, ["--only=host"], "", 0, "training on the CPU"),
        ({"python3": OLD, "python3.11": "3.11"}, ["--status"], "", 2, "no run in"),
        ({"python3": OLD}, ["--only=host"], "", 2, "no Python 3.10 or newer found: sudo apt-get"),
        ({"python3": OLD, "dnf": ""}, ["--demo"], "", 2, "sudo dnf install python3.11"),
        ({}, ["--status"], "", 2, "no Python 3.10 or newer found"),
        # Only one that PATH does not name.
        ({"hidden/python": "3.12"}, ["--only=host"], "tools/hidden/python", 0, "on the CPU"),
        ({"python3": "3.11"}, ["--demo", "--dry_run"], "/no/python", 2, "PYTHON=/no/python does"),
        ({"python3": "3.11", "p": OLD}, ["--status"], "p", 2, "PYTHON=p is Python 3.9: give"),
        ({"python3": "3.11", "p": "3.10"}, ["--demo"], "p", 2, "PYTHON=p is Python 3.10, but"),
        # Too new for the packages: passed over.
        ({"python3": NEW, "python3.13": "3.13"}, ["--demo", "--dry_run"], "", 0, "3.13 -m venv"),
        ({"python3": NEW}, ["--demo"], "", 2, "no Python from 3.11 to 3.14 with"),
        # Colab: the package with the modules is that of the Python, not python3-venv.
        ({"python3": "3.12-"}, ["--demo"], "", 2, "sudo apt-get install python3.12-venv"),
    ],
)  # fmt: skip
def test_a_python_that_will_do(a_clone, pythons, flags, given, code, text):
    for name in NEEDED:
        (a_clone.tools / name).symlink_to(program(name))
    for name, version in pythons.items():
        (a_clone.tools / name).parent.mkdir(exist_ok=True)
        a_clone.tool(name, python_of(version.removesuffix("-"), venv=version.endswith("-")))
    if "--demo" not in flags:
        flags = [*flags, "--cpu", f"--data_dir={a_clone.images}"]
    result = a_clone.run(*flags, PATH=str(a_clone.tools), PYTHON=given)
    assert result.returncode == code and text in result.stdout, result.stdout
    assert "Traceback" not in result.stdout


def test_apt_waits_for_its_locks(a_clone, tmp_path):
    """apt-get itself, with lists that another process has locked for its first two tries."""
    lists, real = tmp_path / "lists", program("apt-get")
    (lists / "partial").mkdir(parents=True)
    (tmp_path / "apt.conf").write_text(
        f'Dir::State::Lists "{lists}";\nDir::Etc::sourcelist "/dev/null";\n'
        f'Dir::Etc::sourceparts "{tmp_path}/none";\nDir::Cache "{tmp_path}";\n'
    )
    hold = (
        f"import fcntl; f = open({str(lists / 'lock')!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print(1, flush=True); input()"
    )
    pipe, words = subprocess.PIPE, [sys.executable, "-c", hold]
    holder = subprocess.Popen(words, stdin=pipe, stdout=pipe)
    holder.stdout.readline()
    slept = f"echo >>{tmp_path}/slept; [ $(wc -l <{tmp_path}/slept) -lt 2 ]"
    a_clone.tool("sleep", f"{slept} || kill {holder.pid}")
    # As on Colab: the package brings what python3.12 lacks.
    a_clone.tool("python3", python_of("3.12", venv=True))
    a_clone.tool("apt-get", f'case "$*" in *update) exec {real} "$@" ;; *python3.12-venv) '
                            f"cp {a_clone.python} {a_clone.tools}/python3 ;; esac")  # fmt: skip
    for version in ("3.11", "3.12", "3.13", "3.14"):
        a_clone.tool(f"python{version}", "exit 1")
    flags = [f"--data_dir={a_clone.images}", "--cpu", "--only=env"]
    try:
        result = a_clone.run(*flags, PYTHON="", APT_CONFIG=str(tmp_path / "apt.conf"))
    finally:
        holder.kill()
        holder.communicate()
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("another program holds apt's lock") == 2
    assert "install python3.12 python3.12-venv" in result.stdout


def wheel(folder: Path, name: str, version: str, more: str = "") -> None:
    """A package of one empty module."""
    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        for part, text in texts.items():
            file.writestr(f"{name}-{version}.dist-info/{part}", text)


def test_pips_settings_change_neither_what_is_installed_nor_where(a_clone, tmp_path):
    """A real environment, by the real pip, of packages that are quickly installed."""
    wheels, others = tmp_path / "wheels", tmp_path / "others"
    for folder, versions in ((wheels, ["1.0", "2.0"]), (others, ["1.0+cpu"])):
        folder.mkdir()
        for name, version in itertools.product(("torch", "torchvision"), versions):
            wheel(folder, name, version)
    wheel(wheels, "needed", "1.0", "Requires-Dist: dependency\n")
    wheel(wheels, "needed", "2.0")
    wheel(wheels, "dependency", "1.0")
    (a_clone.folder / "requirements.txt").write_text("torch==1.0\ntorchvision==1.0\nneeded\n")
    (a_clone.folder / "host" / "constraints.txt").write_text("needed==1.0\ntorch==1.0\n")
    (a_clone.folder / "host" / "smoke_test.py").write_text("import torch, torchvision\n")
    (tmp_path / "constraints").write_text("torch==2.0\n")
    settings = tmp_path / "pip.conf"
    settings.write_text(
        f"[global]\nno-index = true\nfind-links = {wheels}\n    {others}\n"
        f"[install]\ntarget = {tmp_path}/target\nno-deps = true\nrequire-hashes = true\n"
        f"constraint = {tmp_path}/constraints\nprefix = {tmp_path}/target\n"
    )
    result = a_clone.run(
        *(f"--data_dir={a_clone.images}", "--cpu", "--only=env"),
        PYTHON=sys.executable,
        PIP_FIND_LINKS="",
        PIP_CONFIG_FILE=str(settings),
        PIP_CONSTRAINT=str(tmp_path / "constraints"),
        PIP_USER="1",
        PIP_QUIET="1",
        PIP_TARGET=str(tmp_path / "target"),
        PIP_REQUIRE_HASHES="1",
        PYTHONPATH=str(wheels),
        PYTHONSAFEPATH="1",
    )
    assert "host.smoke_test" in result.stdout, result.stdout  # train.py's settings are checked next
    packages = next(a_clone.venv.glob("lib/*/site-packages"))
    names = {path.name for path in packages.glob("*-1.0*.dist-info")}
    assert names == {
        f"{name}-1.0.dist-info" for name in ("torch", "torchvision", "needed", "dependency")
    }
    assert (a_clone.venv / ".stamp.requirements.txt").exists()
    assert not (tmp_path / "target").exists()


@needs_root
def test_a_file_system_on_which_nothing_runs_is_named_first(a_clone, tmp_path):
    host = Host(tmp_path / "host")
    try:
        assert host.call("mkdir", "/mnt/v").returncode == 0
        assert host.call("mount", "-t", "tmpfs", "-o", "noexec", "none", "/mnt/v").returncode == 0
        enter = ["nsenter", "--mount", f"--target={host.process.pid}", "env", "VENV=/mnt/v/a/b"]
        result = subprocess.run(
            [*enter, f"PYTHON={a_clone.python}", a_clone.folder / "setup_and_train.sh", "--demo"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 2 and "is mounted noexec" in result.stderr, result.stdout
        assert "mount -o remount,exec /mnt/v," in result.stderr
        assert not host.call("ls", "/mnt/v").stdout
    finally:
        host.close()
