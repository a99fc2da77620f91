"""--then: refused where this host cannot be shut down, and carried out after the right ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import (
    REPOSITORY,
    booted_words,
    host_words,
    processes_mentioning,
    run,
    wait_for,
)
from support.needs import needs, needs_root

from host import background, changes, service, shut_down
from resnet50.records import status

# train.py for these tests: it begins an attempt, and ends it with a state and a code.
TRAIN = """\
echo '{{"attempt": "{attempt}", "state": "{state}", "step": 3}}' >RUN_DIR/status.json
exit {code}
"""


def stubs(folder: Path, **scripts: str) -> str:
    """A PATH that begins with these programs."""
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    "state, code, shuts_down",
    [
        ("done", 0, {"stop-host", "stop-host-when-done"}),
        ("diverged", 3, {"stop-host", "stop-host-when-done"}),
        ("config error", 2, {"stop-host"}),
        ("crashed", 1, {"stop-host"}),
        ("running", 137, {"stop-host"}),  # SIGKILL, as by the OOM killer
        ("interrupted", 2, {"stop-host"}),  # refused when it was started again, as without a GPU
        ("interrupted", 75, set()),
        ("interrupted", 0, set()),  # systemd starts it again
    ],
)
@pytest.mark.parametrize("then", ["nothing", "stop-host", "stop-host-when-done"])
def test_the_host_is_shut_down_only_when_nothing_more_will_happen(
    in_process, tmp_path, state, code, shuts_down, then
):
    in_process.monkeypatch.setattr(background, "unit_is_enabled", lambda: True)
    (tmp_path / "status.json").write_text(json.dumps({"state": state, "attempt": "new"}))
    words = ["after", f"--run_dir={tmp_path}", f"--then={then}", f"--exit_code={code}", "--dry_run"]
    for way in ("systemd", "tmux"):
        result = in_process(service, *words, f"--way={way}", "--last_attempt=old")
        assert result.code == 0 and ("shutdown -h +1" in result.out) == (then in shuts_down)
        # Else the next boot would train it again, or shut the host down again.
        disables = way == "systemd" and (state in ("done", "diverged") or then in shuts_down)
        assert ("systemctl disable" in result.out) == disables
        # The start did nothing: it was refused, or had nothing to do.
        assert "shutdown" not in in_process(service, *words, "--last_attempt=new").out


def test_a_unit_that_was_stopped_and_failed_to_end_keeps_the_host_up(in_process, tmp_path):
    in_process.monkeypatch.setattr(background, "unit_is_enabled", lambda: False)
    (tmp_path / "status.json").write_text('{"state": "running", "attempt": "new"}')
    words = ["after", f"--run_dir={tmp_path}", "--then=stop-host", "--way=systemd", "--dry_run"]
    assert in_process(service, *words, "--exit_code=1").out == ""


@needs_root
@pytest.mark.parametrize("way", ["setsid", pytest.param("tmux", marks=needs("tmux"))])
def test_the_shell_that_trains_carries_it_out(tmp_path, way):
    """A crash shuts the host down, an interruption does not."""
    run_dir, said = tmp_path / "r", tmp_path / "shutdowns"
    path = stubs(tmp_path / "bin", shutdown=f'echo "$*" >>{said}')
    for code, state in ((75, "interrupted"), (1, "crashed")):
        script = TRAIN.format(attempt=code, state=state, code=code).replace("RUN_DIR", str(run_dir))
        start = host_words("service", "start", f"--run_dir={run_dir}", f"--way={way}")
        words = [*start, "--then=stop-host", "--", "sh", "-c", script]
        result = run(booted_words(*words), tmp_path, PATH=path, TMUX_TMPDIR=str(tmp_path))
        assert result.code == 1 and "SHUT DOWN" in result.out, result.out + result.err
        assert not said.exists() or code == 1
    wait_for(said.exists, what="the shutdown")
    assert said.read_text() == "-h +1\n"
    assert "sudo shutdown -c" in result.err


@needs_root
def test_it_is_carried_out_after_the_environment_was_renamed(tmp_path):
    """It was started by the Python of an activated one."""
    run_dir, said, venv = tmp_path / "r", tmp_path / "shutdowns", tmp_path / "environment"
    path = stubs(tmp_path / "bin", shutdown=f'echo "$*" >>{said}')
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    script = TRAIN.format(attempt=1, state="done", code=0).replace("RUN_DIR", str(run_dir))
    start = host_words("service", "start", f"--run_dir={run_dir}", "--way=setsid")
    words = [venv / "bin" / "python" if word == sys.executable else word for word in start]
    words += ["--then=stop-host", "--", "sh", "-c", f"mv {venv} {venv}.old; {script}"]
    result = run(booted_words(*words), tmp_path, PATH=path)
    assert result.code == 0, result.out + result.err
    wait_for(said.exists, 30, what="the shutdown")


@pytest.mark.parametrize(
    "systemd, init, marked, program, uid, problem",
    [
        (True, "systemd", False, True, 0, ""),
        (True, "systemd", True, True, 0, ""),  # a container that runs systemd
        (False, "init", False, True, 0, ""),  # SysV, OpenRC
        (False, "init", True, True, 0, "this is a container"),
        (False, "bash", False, True, 0, "this is a container"),
        (True, "systemd", False, False, 0, "needs the program `shutdown`"),
        (True, "systemd", False, True, 1000, "needs root"),
    ],
)
def test_a_host_that_cannot_be_shut_down_is_named_at_the_start(
    in_process, tmp_path, systemd, init, marked, program, uid, problem
):
    (tmp_path / "comm").write_text(f"{init}\n")
    stubs(tmp_path / "bin", **({"shutdown": ""} if program else {}))
    patch = in_process.monkeypatch.setattr
    patch(shut_down, "BOOTED", tmp_path if systemd else tmp_path / "no")
    patch(shut_down, "INIT", tmp_path / "comm")
    patch(shut_down, "CONTAINER_MARKS", [tmp_path] if marked else [])
    patch("host.commands.SYSTEM_FOLDERS", str(tmp_path / "bin"))  # as for cron, not on PATH
    patch(os, "geteuid", lambda: uid)
    in_process.monkeypatch.setenv("PATH", "/no/folder")
    assert problem in shut_down.problem() and bool(problem) == bool(shut_down.problem())
    if problem:
        flags = [f"--run_dir={tmp_path / 'r'}", "--way=setsid", "--then=stop-host"]
        for words in (["check"], ["start", "--", "true"], ["start", "--dry_run", "--", "true"]):
            result = in_process(service, words[0], *flags, *words[1:])
            assert result.code == 2 and f"--then stop-host {shut_down.problem()}" in result.err
            assert "SHUT DOWN" not in result.out and not (tmp_path / "r").exists()


def test_a_password_given_a_moment_ago_does_not_count(in_process, tmp_path):
    """sudo has forgotten it by the end of a training. The stand-in remembers one, as sudo does."""
    path = stubs(tmp_path / "bin", sudo='case " $* " in *" -k "*) exit 1 ;; esac')
    in_process.monkeypatch.setenv("PATH", path)
    assert not changes.can_sudo()


@pytest.mark.parametrize("way", ["setsid", pytest.param("tmux", marks=needs("tmux"))])
def test_a_training_that_runs_without_it_is_not_promised_a_shutdown(
    in_process, tmp_path, holder_script, way
):
    run_dir, bin_path = tmp_path / "r", stubs(tmp_path / "bin", shutdown="")
    flags = [f"--run_dir={run_dir}", f"--way={way}"]
    in_process.monkeypatch.setenv("TMUX_TMPDIR", str(tmp_path))
    in_process.monkeypatch.setenv("PATH", bin_path)
    in_process.monkeypatch.setattr(shut_down, "problem", lambda: "")
    for own, other in (("nothing", "stop-host"), ("stop-host-when-done", "stop-host")):
        program = ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, holder_script, run_dir]
        started = in_process(service, "start", *flags, f"--then={own}", "--", *map(str, program))
        assert started.code == 0, started.out + started.err
        assert (f"--then {own}" in in_process(service, "status", *flags).out) == (own != "nothing")
        for do in ("check", "is_training", "is_settled"):
            assert in_process(service, do, *flags, f"--then={own}").code == 0
            refused = in_process(service, do, *flags, f"--then={other}")
            assert refused.code == 2 and f"without --then {other}" in refused.err
            assert f"--stop --run_dir {run_dir}" in refused.err
        (run_dir / "status.json").unlink()  # so that what follows sees an end that is not due
        os.kill(status.supervisor_of(run_dir), signal.SIGKILL)
        wait_for(lambda: not processes_mentioning(str(run_dir)), what="its end")


def test_a_run_that_is_done_is_followed_by_nothing_and_says_so(in_process, tmp_path):
    (tmp_path / "status.json").write_text('{"state": "done", "attempt": "a"}')
    words = ["is_settled", f"--run_dir={tmp_path}", "--then=stop-host"]
    result = in_process(service, *words)
    assert result.code == 0 and "--then stop-host: not in effect" in result.out


def test_what_will_happen_to_the_host_is_said_first(in_process, tmp_path):
    in_process.monkeypatch.setattr(shut_down, "problem", lambda: "")
    for then, promise in shut_down.PROMISES.items():
        flags = [f"--run_dir={tmp_path}", f"--then={then}", "--way=setsid", "--dry_run"]
        result = in_process(service, "start", *flags, "--", "true")
        assert result.out.startswith("when training has ended, this host is SHUT DOWN")
        assert f"--then {then}: {promise}" in result.out
