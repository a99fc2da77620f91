"""--on_end: run once when nothing more will happen, with what there is to tell, and harmless."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from support.commands import (
    REPOSITORY,
    finish,
    processes_mentioning,
    run,
    start,
    tiny_flags,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.runs import events_of, status_of

import train
from resnet50.config import train_flags
from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.records import status
from resnet50.run import on_end
from resnet50.run.resolve import resolve
from resnet50.system import processes

pytestmark = pytest.mark.usefixtures("no_leftovers")
SECRET = "https://example.com/hook/0123456789planted"


def command_into(file: Path, more: str = "") -> str:
    """Writes what it was told as a line of JSON."""
    names = ("STATE", "REASON", "TOP1", "COST_USD", "STEP", "RUN_DIR")
    text = ", ".join(f'"{name}": "$TRAIN_{name}"' for name in names)
    return f"# {SECRET}\ncat <<END >>{file}\n{{{text}}}\nEND\n{more}"


def told_in(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_run_that_is_done_says_so_once_and_nowhere_else(image_folder, tmp_path):
    """Though the command fails; and none of the run's files has it."""
    run_dir, file = tmp_path / "run", tmp_path / "told"
    flags = [*tiny_flags(image_folder, run_dir), "--price_per_hour=36", "--spot_watch=off"]
    words = train_words(*flags, "--on_end", command_into(file, "exit 3"))
    result = run(words, tmp_path)
    assert result.code == 0, result.err
    (told,) = told_in(file)
    ended = status_of(run_dir)
    assert ended["state"] == "done"
    assert told == {
        "STATE": "done",
        "REASON": "all 3 epochs are done",
        "TOP1": f"{ended['best_top1']:.2f}",
        "COST_USD": f"{ended['cost_usd']:.2f}",
        "STEP": "12",
        "RUN_DIR": str(run_dir),
    }
    assert "--on_end (done at step 12): failed with exit code 3" in result.out
    assert events_of(run_dir)[-1] == "--on_end: failed with exit code 3"
    for path in run_dir.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
    again = run_here(words, tmp_path, as_rank=False)
    assert again.code == 0 and "is not run again" in again.out and len(told_in(file)) == 1
    # A kill came between the end and the command: the next start tells.
    changed = {name: value for name, value in ended.items() if name != "told"}
    (run_dir / "status.json").write_text(json.dumps(changed))
    assert run_here(words, tmp_path, as_rank=False).code == 0 and len(told_in(file)) == 2


@pytest.mark.parametrize(
    "more, code, state, reason",
    [
        (["--max_steps=5"], 0, "done", "--max_steps 5 is reached"),
        (["--epochs=9999", "--max_minutes=0.02"], 0, "done", "--max_minutes 0.02 reached: ending"),
        (["--target_top1=0.001"], 0, "done", "--target_top1 0.001 is reached"),
        (["--max_lr=1e30", "--clip_grad_norm=0"], 3, "diverged", "error: the loss is not finite"),
        (["--init_from=no_such_file"], 2, "config error", "no_such_file"),
    ],
)
def test_every_end_has_its_reason(in_process, image_folder, tmp_path, more, code, state, reason):
    """A lone rank's end, and what the supervisor does after it."""
    run_dir, file = tmp_path / "run", tmp_path / "told"
    flags = [*tiny_flags(image_folder, run_dir), "--spot_watch=off", *more]
    result = in_process(train, *flags, as_rank=True)
    assert result.code == code, result.err
    presets = dict.fromkeys(RECIPES, "")
    request = train_flags.parse(train_flags.build_parser(presets, ""), [*map(str, flags)])
    on_end.tell(command_into(file), resolve(request), code, say=print)
    (told,) = told_in(file)
    assert told["STATE"] == state and reason in told["REASON"], told
    assert told["COST_USD"] == ""


def test_another_mistake_is_told_too_and_the_last_one_counts(tmp_path):
    """Though the run stands where it stood; an error of an earlier attempt is none of this one."""
    file, cfg, said = tmp_path / "told", TrainConfig(run_dir=str(tmp_path)), []
    event = {"kind": "event", "step": 4, "text": "error: 12 images cannot be decoded"}
    (tmp_path / "log.jsonl").write_text(json.dumps(event) + "\n")
    for message in ("", "a is not the data", "b is not", "b is not"):
        status.write_status(tmp_path, state=status.CONFIG_ERROR, step=4, message=message)
        on_end.tell(command_into(file), cfg, 2, say=said.append)
    reasons = [told["REASON"] for told in told_in(file)]
    assert reasons == [event["text"], "a is not the data", "b is not"]
    assert said[-1].endswith("for this end (config error at step 4), and is not run again")


def torchruns_ranks(run_dir: Path) -> list[int]:
    """The training processes of a run without loaders."""
    lines = {
        pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_mentioning(str(run_dir))
    }
    launchers = [pid for pid, line in lines.items() if b"torch.distributed.run" in line]
    return [pid for launcher in launchers for pid in processes.children_of(launcher)]


def test_a_crash_for_good_tells_and_an_interruption_does_not(image_folder, tmp_path):
    run_dir, file = tmp_path / "run", tmp_path / "told"
    flags = [*tiny_flags(image_folder, run_dir), "--epochs=100000", "--spot_watch=off"]
    process = start([*train_words(*flags), "--on_end", command_into(file)], tmp_path)
    wait_for(lambda: torchruns_ranks(run_dir))
    for pid in torchruns_ranks(run_dir):
        os.kill(pid, signal.SIGKILL)
    result = finish(process)
    assert result.code == 1, result.out
    (told,) = told_in(file)
    assert told["STATE"] == "crashed" and told["REASON"] == on_end.CRASHED_TEXT
    assert told["TOP1"] == ""
    cfg, said = TrainConfig(run_dir=str(run_dir)), []
    for code in (1, 75):  # as systemd starts it again; and as a spot notice ends it
        on_end.tell(command_into(file), cfg, code, say=said.append)
    assert len(told_in(file)) == 1 and len(said) == 1 and "is not run again" in said[0]


def test_what_takes_too_long_is_killed_with_all_that_it_started(tmp_path, monkeypatch):
    """Also what has left its group: nohup, setsid, a daemon."""
    monkeypatch.setattr(on_end, "LIMIT_S", 1.0)
    mark = tmp_path / "sleeper"
    mark.symlink_to("/bin/sleep")
    command = f"setsid {mark} 90 & (setsid sh -c '{mark} 91 & {mark} 92' &) ; nohup {mark} 93"
    began = time.monotonic()
    said = on_end.run(command, {}, lambda: time.monotonic() < began)
    assert said == "killed after 1 s" and time.monotonic() - began < 10
    wait_for(lambda: not processes_mentioning(str(mark)), 5)
    assert on_end.run(f"{mark} 94", {}, lambda: True) == "killed, as a signal came"
    assert on_end.run("exit 0", {}, lambda: False) == "done"


def test_ctrl_c_ends_it_where_the_run_was_done_already(tmp_path):
    """There train.py handles no signals: neither a traceback, nor a command that goes on alone."""
    mark = tmp_path / "sleeper"
    mark.symlink_to("/bin/sleep")
    command = f"touch begun; {mark} 95"
    wait = f"from resnet50.run import on_end; print(on_end.run('{command}', {{}}, bool))"
    process = start([sys.executable, "-P", "-c", wait], tmp_path, PYTHONPATH=str(REPOSITORY))
    wait_for((tmp_path / "begun").exists)
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert (result.code, result.out, result.err) == (0, "killed, as a signal came\n", "")
    assert not processes_mentioning(str(mark))


@pytest.mark.parametrize(
    "command, text",
    [
        ("echo 'half", "is no command for bash: -c: line 1: unexpected EOF"),
        ("if then", "is no command for bash: -c: line 1: syntax error"),
        ("no_such_program --to me", "begins with no_such_program, which is no command here"),
        ("A=1 B='2 3' ./notify.sh", "begins with ./notify.sh, which is no command here"),
        ("( no_such_program; )", "begins with no_such_program, which"),
        ("A=1 ~/no_such_program", "begins with /"),
        ("# curl example.com", "holds no command"),
        ("A=1", "holds no command"),
    ],
)
def test_what_is_no_command_is_refused_at_the_start(
    in_process, image_folder, tmp_path, command, text
):
    flags = [*tiny_flags(image_folder, tmp_path / "run"), "--on_end", command]
    for words in (flags, [*flags, "--print_config"]):
        result = in_process(train, *words)
        assert result.code == 2 and f"--on_end {command!r} {text}" in result.err, result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command",
    [
        *("true", "! false", "if true; then :; fi", "{ echo; }", "$HOME/x", "(cd / && ls)"),
        *("A=1 ls>/x", "A=1 ~/tell.sh", "f() { echo; }; f", "2>/dev/null echo", "A=(1 2); echo"),
        *("MSG=$'it\\'s done' echo", "A+=1 echo", "A=$(date) echo", "{fd}>/dev/null echo"),
        "\\\necho",
    ],
)
def test_what_may_be_a_command_is_not(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tell.sh").touch(mode=0o755)
    assert on_end.problem(command) == ""


def test_a_check_that_hangs_ends(tmp_path, monkeypatch):
    (tmp_path / "profile").write_text("sleep 5")
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "profile"))  # what bash reads first
    monkeypatch.setattr(on_end, "CHECK_S", 0.3)
    assert on_end.problem("echo") == "could not be checked in 0.3 s"


def test_torchrun_by_hand_has_nobody_to_run_it(in_process, image_folder, tmp_path):
    flags = [*tiny_flags(image_folder, tmp_path / "run"), "--on_end=true"]
    result = in_process(train, *flags, as_rank=True)
    assert result.code == 2 and "--on_end needs `python train.py`" in result.err


def test_the_ranks_do_not_get_it():
    words = ["--fresh", "--on_end", "--epochs", "--epochs=3", "--on_end=x y", "--seed", "1"]
    assert train_flags.for_ranks(words) == ["--epochs=3", "--seed", "1"]


def test_a_folder_that_cannot_be_written_does_not_keep_it_from_telling(tmp_path):
    cfg, said = TrainConfig(run_dir=str(tmp_path / "gone")), []
    on_end.tell(f"echo $TRAIN_STATE >{tmp_path}/told", cfg, 1, say=said.append)
    assert (tmp_path / "told").read_text() == "crashed\n"
    assert said == ["--on_end (crashed at step 0): done"]
