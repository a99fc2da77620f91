"""setup_and_train.sh: options, dry run, how it may be called, and a short real demo."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.clones import clone
from support.commands import REPOSITORY, environment
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
        (["--data_dir="], "--data_dir is empty: is it an unset variable?"),
        (["--cpu", "--mount", ""], "--mount is empty"),
        (["--data_dir=.", "--only=,"], "--only , names no step"),
        (["--data_dir=.", "--only=bench"], "there is no environment in"),
        (["--data_dir", "-x"], "-x: no such folder"),
        (["--data_from="], "--data_from is empty: is it an unset variable?"),
        (["--demo", "--data_from=s3://b/x"], "--demo does not take --data_from"),
        (["--demo", "--then=stop-host"], "--demo does not take --then"),
        (["--test", "--", "--epochs=3"], "--test does not take --:"),
    ],
)
def test_mistakes_end_with_2_and_do_nothing(tmp_path, flags, message):
    result = call(clone(tmp_path), *flags)
    assert result.returncode == 2 and "error: " in result.stderr
    assert message in result.stderr and "realpath" not in result.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--mirror=s3://key:SECRET@bucket/run"],
        ["--mirror", "s3://bucket/run?key=SECRET"],
        ["--data_from=https://user:SECRET@host/imagenet"],
        ["--", "--mirror", "s3://key:SECRET@bucket/run"],
        ["--", "--mirror=s3://key:SECRET@bucket/run"],
    ],
)
def test_a_secret_in_a_url_is_refused_before_anything_shows_it(tmp_path, flags):
    folder = clone(tmp_path)
    result = call(folder, "--data_dir=.", *flags)
    assert result.returncode == 2 and " in a URL: " in result.stderr
    assert "SECRET" not in result.stdout + result.stderr
    assert not (folder / ".setup.log").exists()


@pytest.mark.parametrize(
    "code, said", [(0, "settled\n"), (10, "goes on\n"), (1, ""), (2, ""), (127, "")]
)
def test_only_an_answer_says_that_nothing_trains(tmp_path, code, said):
    """Not a Python that does not work, in whose name a training's code would be changed."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexit {code}\n")
    python.chmod(0o755)
    variables = f"STEPS=train only=train data_dir=. max_steps= run_dir=r host_python={python}"
    question = "if is_settled; then echo settled; else echo goes on; fi"
    script = f"{variables} train_words=(); source host/setup_steps.sh; {question}"
    words = ["bash", "-c", script]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == (said, 0 if said else code)


def test_packs_are_brought_and_the_run_is_mirrored_where_the_user_says(tmp_path):
    """Folders are those of the user's current one, whatever the script's is."""
    flags = ["--dry_run", "--cpu", "--data_dir=packs", "--only=data,train"]
    result = call(clone(tmp_path), *flags, "--data_from=s3://b/imagenet", "--mirror=../mirror")
    assert result.returncode == 0, result.stderr
    brought = f"-m resnet50.packing.fetch --data_from s3://b/imagenet --data_dir {tmp_path}/packs\n"
    assert brought in result.stdout and f"--mirror {tmp_path.parent}/mirror" in result.stdout
    result = call(tmp_path, *flags, "--data_from=there", "--mirror=s3://b/runs/1")
    assert f"--data_from {tmp_path}/there" in result.stdout and "--mirror s3://b" in result.stdout


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


@pytest.mark.parametrize(
    "words, code, text",
    [
        (["sh", SCRIPT, "--demo"], 2, "error: this is a bash script: bash setup_and_train.sh"),
        (["bash", "--posix", SCRIPT, "--demo", "--dry_run"], 0, "train.py --recipe demo"),
        (["bash", SCRIPT, "--max_steps=3", "--dry_run", "--demo"], 0, "--max_steps 3"),
    ],
)
def test_it_runs_in_bash_without_its_run_bit_and_in_any_order(tmp_path, words, code, text):
    folder = clone(tmp_path)
    (folder / SCRIPT).chmod(0o644)
    if words[0] == "sh":
        words[0] = next(filter(shutil.which, ("dash", "busybox")), "") or pytest.skip("needs dash")
    result = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True)
    assert result.returncode == code and text in result.stdout + result.stderr


def test_copied_alone_it_names_what_needs_a_clone(tmp_path):
    shutil.copy(REPOSITORY / SCRIPT, tmp_path)
    result = call(tmp_path, "--max_steps=3", "--demo")
    assert result.returncode == 2 and "not in a clone: --demo needs one" in result.stderr


def test_folders_are_those_of_the_user(tmp_path):
    folder = clone(tmp_path / "clone")
    script = folder / SCRIPT

    def commands(*flags: str, **more: str) -> str:
        words = ["bash", script, "--dry_run", *flags]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment(**more), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f" -m venv {tmp_path}/mine\n" in commands("--demo", VENV="mine")
    assert f" -m venv {folder}/.venv\n" in commands("--demo", VENV="")
    out = commands("--cpu", "--mount=vol", "--only=volume,env")
    assert f"--mount {tmp_path}/vol" in out and f" -m venv {tmp_path}/vol/resnet50\n" in out


def test_a_clone_by_git_for_windows_has_the_line_ends_of_bash(tmp_path):
    origin, copy = clone(tmp_path / "origin"), tmp_path / "copy"
    for words in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=all"],
        ["clone", "--quiet", "-c", "core.autocrlf=true", ".", copy],
    ):
        subprocess.run(["git", *words], cwd=origin, check=True)
    for path in origin.rglob("*"):
        if path.is_file() and ".git" not in path.relative_to(origin).parts:
            assert (copy / path.relative_to(origin)).read_bytes() == path.read_bytes(), path


def test_the_demo_trains_and_says_when_it_is_done(tmp_path):
    """On a smaller data set in Fashion-MNIST's place; the real one is in test_prepare_data.py."""
    folder = clone(tmp_path / "clone")
    # The environment that runs this test stands for the one that the script builds.
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in -c*) echo 3.11 ;; *) exec {sys.executable} "$@" ;; esac\n'
    )
    python.chmod(0o755)
    requirements = (folder / "requirements.txt").read_bytes()
    pins = (folder / "host" / "constraints.txt").read_bytes()
    digest = hashlib.sha256(requirements * 2 + pins)  # what build_environment hashes for it
    (folder / ".venv" / ".stamp.requirements.txt").write_text(f"{digest.hexdigest()}\n")
    (folder / ".venv" / ".index").write_text("\n")
    make_folder(folder / "data" / "fashion-mnist", 90, 5)  # two steps an epoch
    for steps, text in ((2, "final top-1"), (2, "is done at step 2")):
        result = call(folder, "--demo", f"--max_steps={steps}")
        assert result.returncode == 0, result.stdout + result.stderr
        assert "data/fashion-mnist is already complete" in result.stdout
        assert text in result.stdout
        assert ("curves: runs/demo/curves.png" in result.stdout) == ("done at" not in text)
    assert (folder / "runs" / "demo" / "curves.png").exists()
