"""tmux with real shells and real settings of users, and what a systemd unit is made of."""

import json
import os
import pwd
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import host_words, run, wait_for
from support.needs import needs, program

from host import background, service, shut_down, systemd_unit

# train.py for these tests: it is done at once, and leaves the environment that it had.
TRAIN = """\
import json, os, sys, time
folder = sys.argv[1]
json.dump(dict(os.environ), open(f"{folder}/environment.json", "w"))
state = {"attempt": str(time.time()), "state": "done", "step": 3, "stop_step": 3}
json.dump(state, open(f"{folder}/new.json", "w"))
os.rename(f"{folder}/new.json", f"{folder}/status.json")
time.sleep(float(sys.argv[2]))
"""
SETTINGS = """\
set -g remain-on-exit on
set -g default-command "sleep 100"
set -g base-index 3
"""


@pytest.fixture
def tmux(tmp_path):
    """TMUX_TMPDIR with a server of the user's own, which knows nothing of our variables."""
    folder = tmp_path / "t"
    folder.mkdir()
    place = {**os.environ, "TMUX_TMPDIR": str(folder)}
    words = [program("tmux"), "new-session", "-d", "-s", "own", "sleep", "100"]
    subprocess.run(words, env=place, check=True)
    yield str(folder)
    for socket in folder.glob("*/*"):
        subprocess.run(["tmux", "-S", socket, "kill-server"], env=place, capture_output=True)


@pytest.mark.parametrize("shell", ["fish", "tcsh", "nologin"])
def test_tmux_trains_whatever_the_users_shell_and_settings_are(monkeypatch, tmp_path, tmux, shell):
    home, script = tmp_path / "home", tmp_path / "train.py"
    home.mkdir()
    (home / ".tmux.conf").write_text(SETTINGS)
    script.write_text(TRAIN)
    user = {"HOME": str(home), "SHELL": program(shell), "TMUX_TMPDIR": tmux}
    run_dirs = [tmp_path / name / "a run's folder; 1.5" for name in ("x", "y")]

    def start(run_dir: Path, sleep_s: int, **more: str):
        words = host_words("service", "start", f"--run_dir={run_dir}", "--way=tmux")
        return run(
            [*words, "--", sys.executable, script, run_dir, sleep_s], tmp_path, **user, **more
        )

    def environment_of(run_dir: Path) -> dict[str, str]:
        return json.loads((run_dir / "environment.json").read_text())

    # Two folders of one name at the same time; variables of this start, and not of the first one.
    steering = {"CUDA_VISIBLE_DEVICES": "0,1", "HTTPS_PROXY": "http://me:secret@proxy"}
    for run_dir, more in zip(run_dirs, (steering, {}), strict=True):
        started = start(run_dir, 100, **more)
        assert started.code == 0 and f"{run_dir}: done" in started.out, started.out + started.err
        found, wanted = environment_of(run_dir), {**os.environ, **more}
        for name in (*steering, "LC_ALL"):
            assert found.get(name) == wanted.get(name), name
        assert found["SHELL"] == user["SHELL"]
    monkeypatch.setenv("TMUX_TMPDIR", tmux)
    for run_dir in run_dirs:
        words = background.tmux_words(run_dir, "kill-session")
        subprocess.run(words, check=True)
    for _ in range(2):  # what has ended leaves no session behind, so that the next start works
        assert start(run_dirs[0], 0).code == 0
        wait_for(lambda: not background.has_tmux_session(run_dirs[0]), what="its end")


def test_a_start_that_still_runs_in_tmux_is_named(in_process, tmp_path, tmux):
    in_process.monkeypatch.setattr(background, "END_S", 0)
    in_process.monkeypatch.setenv("TMUX_TMPDIR", tmux)
    words = background.tmux_words(tmp_path / "r", "new-session", "-d", "sleep", "100")
    subprocess.run(words, check=True)
    words = ["start", f"--run_dir={tmp_path / 'r'}", "--way=tmux", "--", "true"]
    result = in_process(service, *words)
    assert result.code == 2 and "has not ended yet: see tmux -L resnet50-" in result.err


@pytest.mark.parametrize(
    "name, value, gets",
    [
        ("CUDA_VISIBLE_DEVICES", "0,1", True),
        ("NCCL_SOCKET_IFNAME", "ens5", True),
        ("OMP_NUM_THREADS", "4", True),
        ("IMAGENET_DIR", "/data/a $b %c \"d\" 'e' \\f", True),
        ("LD_LIBRARY_PATH", "/opt/cuda/lib", True),
        ("AWS_EC2_METADATA_DISABLED", "true", True),
        ("AWS_REGION", "us-east-1", True),
        ("AWS_ENDPOINT_URL", "https://me:secret@minio:9000", False),
        ("AWS_SECRET_ACCESS_KEY", "secret", False),
        ("https_proxy", "http://proxy:3128", True),
        ("NO_PROXY", "169.254.169.254,@", False),
        ("HTTP_PROXY", "http://me:secret@proxy:3128", False),
        ("IMAGENET_DIR", "two\nlines", False),
        ("HF_TOKEN", "hf_secret", False),
        ("HOME", "/root", None),
        ("RANK", "0", None),
    ],
)
def test_a_unit_gets_what_steers_a_run_and_no_secret(tmp_path, name, value, gets):
    """gets: None for what neither is passed on nor would be missed."""
    found, withheld = systemd_unit.steering({name: value})
    assert found == ({name: value} if gets else {}) and withheld == (
        [name] if gets is False else []
    )
    text = unit_text(tmp_path, environment=found)
    assert (f"{name}=" in text) == bool(gets)
    if gets:
        assert value.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"') in text


def unit_text(folder: Path, **more: object) -> str:
    return systemd_unit.text(
        name=background.NAME,
        command=["/usr/bin/env", "python3", "train.py", "--x=50% of $HOME"],
        folder=folder,
        run_dir=folder / "run",
        log=folder / "a folder" / "console.log",
        user="root",
        **more,
    )


@needs("systemd-analyze")
def test_the_units_pass_systemds_own_check(tmp_path):
    texts = {
        background.UNIT: unit_text(
            tmp_path,
            environment={"IMAGENET_DIR": "/data/a $b %c \"d\" 'e' \\f", "NCCL_DEBUG": "INFO"},
            before=[["/usr/bin/env", "true"]],
            after=["/usr/bin/env", "python3", "-c", 'print("a b")'],
            on_failure=background.FAILED_UNIT,
        ),
        background.FAILED_UNIT: systemd_unit.failed_text(["/usr/bin/env", "true"], tmp_path / "l"),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / name) for name in texts)],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0 and background.NAME not in checked.stderr, checked.stderr
    text = texts[background.UNIT]
    settings = ["Restart=on-failure", "RestartPreventExitStatus=2 3", "SuccessExitStatus=75"]
    for setting in [*settings, "RestartForceExitStatus=75", "KillMode=mixed"]:
        assert setting in text
    assert "git" not in text  # a resumed run keeps its code


@pytest.mark.parametrize(
    "run_folder, state, is_active, is_enabled, message",
    [
        ("other user's", None, "failed", "enabled", "trains"),
        ("other user's", "done", "active", "disabled", "trains"),
        ("other user's", None, "inactive", "", "trains"),
        ("other user's", None, "failed", "disabled", ""),  # its folder is gone
        ("other user's", "diverged", "failed", "disabled", ""),
        ("other user's", "interrupted", "inactive", "disabled", "trains"),
        ("other user's", "crashed", "failed", "disabled", "trains"),
        ("", None, "inactive", "disabled", "is not ours"),
        (None, None, "inactive", "", ""),
    ],
)
def test_another_runs_unit_is_not_replaced(
    in_process, tmp_path, run_folder, state, is_active, is_enabled, message
):
    other = tmp_path / (run_folder or "none")
    if state:
        other.mkdir()
        (other / "status.json").write_text(json.dumps({"state": state}))
    unit, stub = tmp_path / "units" / background.UNIT, tmp_path / "bin" / "systemctl"
    for folder in (unit.parent, stub.parent):
        folder.mkdir()
    before = f"{systemd_unit.MARK}{other}\n" if run_folder else "# another program's\n"
    if run_folder is not None:
        unit.write_text(before)
    answers = f"is-active) echo {is_active} ;; is-enabled) echo {is_enabled} ;;"
    stub.write_text(f'#!/bin/sh\ncase "$1" in {answers} esac\n')
    stub.chmod(0o755)
    patch = in_process.monkeypatch
    patch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    for module in (background, service):
        patch.setattr(module, "UNIT_PATH", unit)
    patch.setattr(background, "UNITS", unit.parent)
    patch.setattr(shut_down, "BOOTED", tmp_path)
    patch.setattr(background, "can_sudo", lambda: True)
    patch.setattr(service, "START_S", 0)
    patch.setattr(background, "as_root", lambda *words: list(words))
    flags = [f"--run_dir={tmp_path / 'r'}", "--way=systemd"]
    assert in_process(service, "check", *flags).code == (2 if message else 0)
    result = in_process(service, "start", *flags, "--", sys.executable)
    assert message in result.err
    is_replaced = unit.exists() and f"{systemd_unit.MARK}{tmp_path / 'r'}\n" in unit.read_text()
    assert is_replaced != bool(message)
    if message:
        assert result.code == 2
        assert unit.read_text() == before and not (tmp_path / "r").exists()
    if message == "trains":
        stop = f"--stop --run_dir {shlex.quote(str(other))}"
        assert stop in result.err and f"sudo rm {unit}" in result.err
    assert (f"the unit's run before, {other}, is" in result.out) == bool(run_folder and not message)


@pytest.mark.parametrize("is_active", ["inactive", "active"])
def test_a_unit_that_cannot_be_started_or_stopped(in_process, tmp_path, hold, is_active):
    """As in a container with systemctl but no systemd, or for a user without sudo."""
    unit, run_dir = tmp_path / "units" / background.UNIT, tmp_path / "r"
    for folder in (unit.parent, tmp_path / "bin"):
        folder.mkdir()
    stub = tmp_path / "bin" / "systemctl"
    stub.write_text(f'#!/bin/sh\n[ "$1" = is-active ] && echo {is_active} || exit 1\n')
    stub.chmod(0o755)
    patch = in_process.monkeypatch
    patch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    for module in (background, service):
        patch.setattr(module, "UNIT_PATH", unit)
        patch.setattr(module, "as_root", lambda *words: list(words))
    patch.setattr(background, "UNITS", unit.parent)
    patch.setattr(shut_down, "BOOTED", tmp_path)
    patch.setattr(background, "can_sudo", lambda: True)
    words = ["start", f"--run_dir={run_dir}", "--way=systemd", "--then=stop-host"]
    patch.setattr(shut_down, "problem", lambda: "")
    result = in_process(service, *words, "--", sys.executable)
    assert result.code == 2 and "daemon-reload failed" in result.err
    assert [path.exists() for path in unit.parent.iterdir()] == [True] * (
        2 if is_active == "active" else 0
    )
    unit.write_text(f"{systemd_unit.MARK}{run_dir}\n")
    holder = hold("train.py", run_dir)
    stopped = in_process(service, "stop", f"--run_dir={run_dir}")
    assert stopped.code == (2 if is_active == "active" else 0), stopped.out + stopped.err
    assert "disable --now" in stopped.out + stopped.err
    assert (holder.poll() is None) == (is_active == "active")


def test_a_user_without_a_name_is_told_of_the_other_ways(in_process, tmp_path):
    """systemd ends a unit of such a user with 217/USER."""

    def getpwuid(number: int):
        raise KeyError(number)

    in_process.monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    in_process.monkeypatch.setattr(shut_down, "BOOTED", tmp_path)
    in_process.monkeypatch.setattr(background, "can_sudo", lambda: True)
    words = ["start", f"--run_dir={tmp_path / 'r'}", "--way=systemd", "--dry_run", "--", "true"]
    result = in_process(service, *words)
    assert result.code == 2 and "has no name here" in result.err and "--way tmux" in result.err
