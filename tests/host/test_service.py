"""Training without a terminal: hang-ups, stops, kills, and what --status says of them."""

import errno
import fcntl
import json
import os
import pty
import pwd
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import (
    booted_words,
    environment,
    host_words,
    processes_mentioning,
    run,
    tiny_flags,
    train_words,
    wait_for,
)
from support.needs import needs, needs_root
from support.runs import newest_checkpoint, status_of

from host import service, systemd_unit
from host.background import Launch, tmux_words
from resnet50.records.status import supervisor_of

pytestmark = pytest.mark.usefixtures("no_leftovers")


def words(do: str, run_dir: Path, *flags: object) -> list[object]:
    return host_words("service", do, f"--run_dir={run_dir}", *flags)


def call(do: str, run_dir: Path, *flags: object, **more: str):
    return run(words(do, run_dir, *flags), cwd=run_dir.parent, **more)


def training(data_dir: Path, run_dir: Path, *flags: object) -> list[object]:
    return ["--", *train_words(*tiny_flags(data_dir, run_dir), *flags)]


def end(run_dir: Path) -> None:
    """Wait until nothing of it is left."""
    wait_for(lambda: not processes_mentioning(str(run_dir)), what="the end of training")
    # A process that dies has no command line any more before it lets its lock go.
    wait_for(lambda: not supervisor_of(run_dir), what="a free lock")


def test_it_trains_to_the_end_and_says_so(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    started = call("start", run_dir, "--way=setsid", *training(image_folder, run_dir))
    assert started.code == 0, started.err
    assert "step " in started.out and "log: " in started.out
    end(run_dir)
    status = call("status", run_dir)
    assert status.code == 0 and f"{run_dir}: done" in status.out
    assert "step 12 of 12" in status.out and "best top-1" in status.out
    assert "final top-1" in (run_dir / "console.log").read_text()
    again = call("start", run_dir, "--way=setsid", *training(image_folder, run_dir))
    assert again.code == 0 and f"{run_dir}: done" in again.out
    end(run_dir)
    assert "is done at step 12" in again.out
    other = training(image_folder, run_dir, "--epochs=9")
    refused = call("start", run_dir, "--way=setsid", *other)
    assert refused.code == 2 and "cannot be resumed with different settings" in refused.out
    end(run_dir)


@pytest.mark.parametrize("way", ["setsid", pytest.param("tmux", marks=needs("tmux"))])
def test_a_dropped_connection_does_not_end_it(image_folder, tmp_path, way):
    """Started from a terminal that hangs up on everything that it started."""
    run_dir = tmp_path / "run"
    own_tmux = {"TMUX_TMPDIR": str(tmp_path)}
    terminal, other_end = pty.openpty()
    command = words(
        "start", run_dir, f"--way={way}", *training(image_folder, run_dir, "--epochs=200")
    )
    shell = subprocess.Popen(
        ["sh", "-c", '"$@"; sleep 600', "sh", *map(str, command)],
        cwd=tmp_path,
        env=environment(**own_tmux),
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    os.close(other_end)
    wait_for(lambda: status_of(run_dir).get("step", 0) > 2, what="the first steps")
    os.killpg(shell.pid, signal.SIGHUP)
    os.close(terminal)
    shell.wait(timeout=30)
    step = status_of(run_dir)["step"]
    wait_for(lambda: status_of(run_dir)["step"] > step, what="a step after the hang-up")

    status = call("status", run_dir, **own_tmux)
    assert f"training, process {supervisor_of(run_dir)}" in status.out
    if way == "tmux":
        assert "tmux session" in status.out
    stopped = call("stop", run_dir, **own_tmux)
    assert stopped.code == 0 and "interrupted" in stopped.out, stopped.err
    wait_for(lambda: not processes_mentioning(str(run_dir)), what="the end of the shell")
    assert newest_checkpoint(run_dir).stem == f"step_{status_of(run_dir)['step']:09d}"


def test_after_everything_was_killed_the_same_command_resumes(image_folder, tmp_path):
    """What a reboot without systemd leaves."""
    run_dir = tmp_path / "run"
    command = ("start", run_dir, "--way=setsid", *training(image_folder, run_dir, "--epochs=200"))
    assert call(*command).code == 0
    wait_for(lambda: any((run_dir / "checkpoints").glob("step_*[1-9]*.pt")), what="a checkpoint")
    for pid in processes_mentioning(str(run_dir)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    end(run_dir)
    gone = call("status", run_dir)
    assert gone.code == 0 and "gone: it was killed" in gone.out
    step = int(newest_checkpoint(run_dir).stem.removeprefix("step_"))
    assert call(*command).code == 0
    assert f"step {step}" in (run_dir / "console.log").read_text()
    assert supervisor_of(run_dir)
    assert call("stop", run_dir).code == 0
    end(run_dir)
    assert status_of(run_dir)["step"] >= step


def test_a_mistake_shows_at_once(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    command = training(image_folder, run_dir, "--total_batch_size=-3")
    result = call("start", run_dir, "--way=setsid", *command)
    assert result.code == 1
    end(run_dir)
    assert "--total_batch_size" in result.err and "training ended while starting" in result.err


@needs_root
def test_a_start_that_trains_nothing_does_not_shut_the_host_down(image_folder, tmp_path):
    """Even though its status says done, which it has from the start before."""
    run_dir, said, stubs = tmp_path / "run", tmp_path / "shutdowns", tmp_path / "bin"
    stubs.mkdir()
    for name in ("shutdown", "sudo"):
        (stubs / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{said}\n')
        (stubs / name).chmod(0o755)
    flags = ["--way=setsid", "--then=stop-host"]
    path = {"PATH": f"{stubs}:{os.environ['PATH']}"}
    command = booted_words(*words("start", run_dir, *flags, *training(image_folder, run_dir)))
    first = run(command, tmp_path, **path)
    assert first.code == 0 and "SHUT DOWN" in first.out, first.err
    end(run_dir)
    wait_for(said.exists)
    before = said.read_text()
    assert before.endswith("shutdown -h +1\n") and before.count("shutdown") == 1
    for more, code in (("--epochs=3", 0), ("--max_lr=abc", 2), ("--epochs=9", 2)):
        again = run([*command, more], tmp_path, **path)
        assert again.code == code, again.out + again.err
        end(run_dir)
        time.sleep(1)  # what comes after it has no process of the run's name
        assert said.read_text() == before
    assert "--max_lr" in (run_dir / "console.log").read_text()


@pytest.mark.parametrize(
    "do, flags, text",
    [
        ("status", [], "no run in"),
        ("logs", [], "nothing was started"),
        ("start", [], "needs a command"),
        ("stop", ["--", "true"], "needs a command"),
        ("status", ["--way=cron"], "invalid choice"),
    ],
)
def test_mistakes_end_with_2(tmp_path, do, flags, text):
    result = call(do, tmp_path / "run", *flags)
    assert result.code == 2 and text in result.err


def test_damaged_status_is_named(tmp_path):
    (tmp_path / "status.json").write_text("{")
    result = call("status", tmp_path)
    assert result.code == 2 and "status.json cannot be read" in result.err


WORD = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)


@given(words=st.lists(WORD, max_size=5))
def test_a_unit_gives_every_word_to_the_program_as_it_is(words):
    """Read back by systemd.service(5)'s rules: quotes, backslashes, doubled % and $."""
    line = systemd_unit.join(words)
    found, current, quoted, i = [], None, False, 0
    while i < len(line):
        char = line[i]
        if char == '"':
            quoted, current = not quoted, current or ""
        elif char == " " and not quoted:
            found, current = ([*found, current] if current is not None else found), None
        else:
            i += char == "\\"
            assert char not in "%$" or line[i + 1] == char
            i += char in "%$"
            current = (current or "") + line[i]
        i += 1
    assert [*found, current] if current is not None else found == words


ELSEWHERE = "training, held by a process that cannot be seen from here"


@needs_root
def test_a_training_in_another_container_is_left_alone(tmp_path, hold):
    run_dir = tmp_path / "run"
    holder = hold("train.py", run_dir)
    assert f"training, process {holder.pid}, without systemd or tmux" in call("status", run_dir).out
    container = ["unshare", "--pid", "--fork", "--mount-proc"]
    for do, flags, code in (("status", [], 0), ("start", ["--", "true"], 0), ("stop", [], 2)):
        result = run([*container, *words(do, run_dir, *flags)], tmp_path)
        assert result.code == code and ELSEWHERE in result.out + result.err, (do, result)
    assert "stop it there" in result.err and holder.poll() is None
    assert not (run_dir / "console.log").exists()


def test_a_stranger_with_the_holders_number_is_not_stopped(tmp_path, hold):
    """Lustre reports the number that the holder has on its own host."""
    run_dir = tmp_path / "run"
    stranger = hold("work_of_others", run_dir)
    assert ELSEWHERE in call("status", run_dir).out
    assert call("stop", run_dir).code == 2 and stranger.poll() is None


def test_another_users_training_is_named_with_the_way_to_stop_it(in_process, tmp_path, hold):
    holder = hold("train.py", tmp_path / "run")

    def kill(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with in_process.monkeypatch.context() as patch:
        patch.setattr(os, "kill", kill)
        result = in_process(service, "stop", f"--run_dir={tmp_path / 'run'}")
    assert result.code == 2 and f"`sudo kill {holder.pid}`" in result.err
    user = pwd.getpwuid(os.getuid()).pw_name
    assert f"process {holder.pid} belongs to {user}" in result.err


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP])
def test_on_a_disk_without_locks_the_written_number_counts(in_process, tmp_path, hold, number):
    run_dir, real = tmp_path / "run", fcntl.fcntl

    def answer(file: object, what: int, *more: object) -> object:
        if what == fcntl.F_GETLK:
            raise OSError(number, os.strerror(number))
        return real(file, what, *more)

    holder = hold("train.py", run_dir)
    in_process.monkeypatch.setattr(fcntl, "fcntl", answer)
    result = in_process(service, "status", f"--run_dir={run_dir}")
    assert result.code == 0 and f"training, process {holder.pid}" in result.out
    result = in_process(service, "stop", f"--run_dir={run_dir}")
    assert result.code == 0 and holder.wait() == -signal.SIGTERM
    assert "gone: it was killed" in result.out
    in_process.monkeypatch.setattr(service, "START_S", 0)
    flags = [f"--run_dir={run_dir}", "--way=setsid", "--", "true"]
    result = in_process(service, "start", *flags)
    assert result.out.count(f"is on a disk without locks ({os.strerror(number)})") == 1
    wait_for(lambda: not processes_mentioning(str(run_dir)), what="the end of the shell")
    (run_dir / ".supervisor.lock").write_text("half a num")
    assert not supervisor_of(run_dir)


def test_a_question_has_an_answer_of_its_own(tmp_path):
    """A Python that does not get as far as the question ends with 1, which must not mean no."""
    for question in ("is_settled", "is_training"):
        assert call(question, tmp_path / "run").code == service.NO not in (0, 1, 2)
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "__init__.py").write_text("import no_such_module")
    assert call("is_training", tmp_path / "run").code == 1


def test_waiting_for_the_first_step_ends(tmp_path, monkeypatch):
    """A supervisor that never reaches a step is reported as starting, not waited for forever."""
    monkeypatch.setattr(service, "START_S", 1.0)
    (tmp_path / "console.log").write_text("loading\n")
    started, launch = time.monotonic(), Launch(tmp_path, [], "", "nothing", "")
    assert service.wait_for_first_step(launch, 0, lambda: True) == 2  # no run to show yet
    assert service.wait_for_first_step(launch, 0, lambda: False) == 1
    assert time.monotonic() - started < 60


def test_without_a_run_dir_the_run_that_trains_is_meant(in_process, tmp_path, hold):
    """Not whatever wrote last; to end one of several is not for us to choose."""
    folder = f"--runs={tmp_path / 'runs'}"
    assert in_process(service, "status", folder).code == 2
    for name in ("a", "b"):
        holder = hold("train.py", tmp_path / "runs" / name)
    done = tmp_path / "runs" / "done"
    done.mkdir()
    (done / "status.json").write_text('{"state": "done"}')
    shown = in_process(service, "status", folder)
    assert f"{tmp_path / 'runs' / 'b'}: training, process {holder.pid}" in shown.out
    assert f"--status --run_dir {tmp_path / 'runs' / 'a'}" in shown.out
    refused = in_process(service, "stop", folder)
    assert refused.code == 2 and holder.poll() is None
    for name in ("a", "b"):
        assert f"--stop --run_dir {tmp_path / 'runs' / name}" in refused.err
    assert in_process(service, "stop", f"--run_dir={tmp_path / 'runs' / 'b'}").code == 0
    assert in_process(service, "stop", folder).code == 0
    assert f"{done}: done" in in_process(service, "status", folder).out


@pytest.mark.parametrize("state", ["done", "running"])
def test_another_run_under_the_same_name_is_not_taken_for_this_one(
    in_process, tmp_path, hold, state
):
    data, run_dir = tmp_path / "a" / "images", tmp_path / "images"
    run_dir.mkdir()
    if state == "running":
        hold("train.py", run_dir)
    else:
        (run_dir / "status.json").write_text('{"state": "done"}')
    settings = {"settings": {"data_dir": str(data), "recipe": "mild"}}
    (run_dir / "config.json").write_text(json.dumps(settings))
    words = ["is_settled", f"--run_dir={run_dir}"]
    for same in ([], [f"--data_dir={data}/../images", "--recipe=mild"]):
        assert in_process(service, *words, *same).code == 0
    for other in ("--recipe=fast16", f"--data_dir={tmp_path / 'b' / 'images'}"):
        result = in_process(service, *words, other)
        assert result.code == 2 and other.replace("=", " ") in result.err
        assert f"--run_dir {tmp_path / 'OTHER'}" in result.err


WHOLE = {
    "state": "running",
    "step": 5,
    "stop_step": 9,
    "epoch": 0.5,
    "best_top1": 1.5,
    "images_per_s": 30.0,
    "data_wait_pct": 2.0,
    "remaining_s": 60.0,
    "cost_usd": 2.5,
    "paid_s": 3600.0,
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_status_with_a_gap_is_shown(in_process, tmp_path, name):
    for status in (WHOLE | {name: None}, {key: WHOLE[key] for key in WHOLE if key != name}):
        (tmp_path / "status.json").write_text(json.dumps(status))
        result = in_process(service, "status", f"--run_dir={tmp_path}")
        assert result.code == 0 and f"{tmp_path}: " in result.out


def test_a_log_that_is_not_text_is_shown(in_process, tmp_path):
    words = ["start", f"--run_dir={tmp_path / 'r'}", "--way=setsid", "--"]
    result = in_process(service, *words, "printf", r"caf\351 is no path\n")
    assert result.code == 1 and "caf\ufffd is no path" in result.err


@needs_root
def test_a_run_in_memory_is_warned_of(in_process, tmp_path):
    """As in /dev/shm."""
    words = host_words("service", "start", f"--run_dir={tmp_path / 'r'}", "--dry_run", "--", "true")
    script = f'mount -t tmpfs none {tmp_path} && exec "$@"'
    result = run(["unshare", "--mount", "sh", "-c", script, "sh", *words], Path("/"))
    assert result.code == 0 and f"is on {tmp_path} (tmpfs), which is in memory" in result.out
    assert "a stop of the host may empty it" in result.out


@pytest.mark.parametrize("do", ["status", "stop", "logs"])
def test_a_reader_that_has_enough_ends_it_quietly(tmp_path, do):
    (tmp_path / "status.json").write_text('{"state": "done", "step": null, "stop_step": 3}')
    (tmp_path / "console.log").write_text("line\n" * 100_000)
    command = " ".join(map(str, words(do, tmp_path)))
    result = run(["sh", "-c", f"{command} | true"], tmp_path)
    assert result.code == 0 and result.err == ""


@needs("tmux")
def test_without_a_terminal_attach_shows_the_log(tmp_path):
    own_tmux = {"TMUX_TMPDIR": str(tmp_path), "TERM": "xterm"}
    (tmp_path / "console.log").write_text("its last words\n")
    session = tmux_words(tmp_path, "new-session", "-d", "sleep", "100")
    subprocess.run(session, env=environment(**own_tmux), check=True)
    result = call("attach", tmp_path, **own_tmux)
    assert result.code == 0 and result.out == "its last words\n"
    subprocess.run(tmux_words(tmp_path, "kill-server"), env=environment(**own_tmux), check=True)
