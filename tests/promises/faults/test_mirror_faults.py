"""Real runs with a mirror: a server in trouble, a signal, a machine that is gone, two ranks."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support import s3_server
from support.commands import (
    ONE_RANK,
    finish,
    run,
    start,
    tiny_flags,
    torchrun_words,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.kills import assert_as_if_nothing_was, flags_of, kill_all, straight_run
from support.runs import (
    assert_same_end,
    events_of,
    status_of,
    steps_logged,
)
from support.s3_server import BUCKET

from resnet50.records import status

pytestmark = pytest.mark.usefixtures("no_leftovers")
# What the server is told, and what the run's one warning then says. The answer to a HEAD has no
# body, and so no code of the error.
TROUBLES = {
    "fault 503 SlowDown": "SlowDown|it answers 503",
    "fault 403 AccessDenied": "the server refuses these credentials",
    "gone": "it (does not answer|broke the connection|failed)",
    "fault 507 XMinioStorageFull": "XMinioStorageFull|it answers 507",
}


def mirrored(folder: Path) -> dict:
    """What the pointer of a folder's mirror says; empty without one."""
    path = folder / "mirror.json"
    return json.loads(path.read_text()) if path.exists() else {"copies": []}


@pytest.mark.parametrize("minutes", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_server_in_trouble_is_said_once_and_caught_up_with(image_folder, tmp_path, minutes):
    """Meanwhile training goes on, step after step; in the long form, a minute of each trouble."""
    run_dir = tmp_path / "run"
    flags = [*tiny_flags(image_folder, run_dir), "--epochs=100000", "--num_workers=0"]
    words = train_words(*flags, f"--mirror=s3://{BUCKET}/run")

    def warnings() -> list[str]:
        return [text for text in events_of(run_dir) if text.startswith("warning: --mirror")]

    def recoveries() -> int:
        return sum("has caught up: step" in text for text in events_of(run_dir))

    with s3_server.serve(tmp_path) as server:
        server.tell("delay 0.02")  # slow from the beginning: no reason to say anything
        # A pipe that nobody reads would be full after a minute, and training would wait.
        process = start(
            words, tmp_path, stdout=subprocess.DEVNULL, **ONE_RANK, **server.environment
        )
        wait_for(lambda: status_of(run_dir).get("mirrored_step", -1) > 0)
        assert not warnings()
        for number, (trouble, text) in enumerate(TROUBLES.items(), 1):
            server.tell(trouble)
            wait_for(lambda number=number: len(warnings()) == number)
            assert re.search(f"{text}.*minutes behind; training goes on", warnings()[-1])
            reached = len(steps_logged(run_dir))
            wait_for(lambda reached=reached: len(steps_logged(run_dir)) > reached + 5)
            time.sleep(60 * minutes)
            assert process.poll() is None and len(warnings()) == number
            server.tell("fine")
            wait_for(lambda number=number: recoveries() == number)
        os.kill(process.pid, signal.SIGTERM)
        result = finish(process)
        last = [line for line in server.requests() if "mirror.json" in line]
    assert result.code == 75 and "Traceback" not in result.err, result.err
    assert len(warnings()) == len(TROUBLES) and last
    status = status_of(run_dir)
    assert status["mirrored_step"] == status["step"] == status["saved_step"]


def test_a_signal_saves_the_step_there_too_and_frees_the_place(image_folder, tmp_path):
    words = train_words(*flags_of(image_folder, tmp_path / "run", "--save_every_steps=0"))
    words.append(f"--mirror={tmp_path / 'mirror'}")
    process = start(words, tmp_path, **ONE_RANK)
    wait_for(lambda: len(steps_logged(tmp_path / "run")) >= 6)
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    assert result.code == 75, result.err
    step = status_of(tmp_path / "run")["step"]
    assert mirrored(tmp_path / "mirror")["copies"][-1]["step"] == step
    assert status_of(tmp_path / "mirror")["state"] == "interrupted"
    assert not (tmp_path / "mirror/lock.json").exists()
    shutil.rmtree(tmp_path / "run")
    result = run_here(words, tmp_path)
    assert result.code == 0 and f"restored from {tmp_path / 'mirror'}: step {step}" in result.out
    assert_same_end(straight_run(image_folder), tmp_path / "run")
    assert any("restored from" in text for text in events_of(tmp_path / "run"))


def test_a_machine_that_is_gone_goes_on_elsewhere_under_the_supervisor(image_folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    more = f"--mirror={tmp_path / 'mirror'}", "--num_workers=1"
    process = start(train_words(*flags_of(image_folder, first, *more)), tmp_path)
    wait_for(lambda: len(mirrored(tmp_path / "mirror")["copies"]) >= 2)
    kill_all(first, process)
    run_id = json.loads((first / "config.json").read_text())["run"]
    shutil.rmtree(first)
    result = run(train_words(*flags_of(image_folder, second, *more)), tmp_path)
    assert result.code == 0, result.err
    assert f"restored from {tmp_path / 'mirror'}" in result.out and "resuming at" in result.out
    assert json.loads((second / "config.json").read_text())["run"] == run_id
    assert_as_if_nothing_was(image_folder, second)
    assert status_of(tmp_path / "mirror")["state"] == "done"
    copies = mirrored(tmp_path / "mirror")["copies"]
    assert copies[-1]["step"] == status_of(second)["step"] == status_of(second)["mirrored_step"]


@pytest.mark.long
def test_two_ranks_of_a_torchrun_go_on_from_there_as_well(image_folder, tmp_path):
    """Rank 0 fills the folder, and the other one waits for it."""
    straight, first, second = (tmp_path / name for name in ("straight", "first", "second"))
    result = run(torchrun_words(2, "train.py", *flags_of(image_folder, straight)), tmp_path)
    assert result.code == 0, result.err
    more = [f"--mirror={tmp_path / 'mirror'}"]
    process = start(torchrun_words(2, "train.py", *flags_of(image_folder, first, *more)), tmp_path)
    wait_for(lambda: len(mirrored(tmp_path / "mirror")["copies"]) >= 2)
    kill_all(first, process)
    shutil.rmtree(first)
    words = torchrun_words(2, "train.py", *flags_of(image_folder, second, *more))
    result = run(words, tmp_path)
    assert result.code == 0 and "restored from" in result.out, result.err
    assert_same_end(straight, second)
    result = run(
        torchrun_words(2, "train.py", *flags_of(image_folder, first, "--max_lr=1", *more)), tmp_path
    )
    assert result.code == 1 and "--max_lr 1.0 (the run has" in result.err


def test_a_mirror_that_is_new_to_a_run_that_has_ended_gets_all_of_it(image_folder, tmp_path):
    words = train_words(*tiny_flags(image_folder, tmp_path / "run"), "--max_steps=4")
    assert run_here(words, tmp_path).code == 0
    assert mirrored(tmp_path / "mirror")["copies"] == []
    assert run_here([*words, f"--mirror={tmp_path / 'mirror'}"], tmp_path).code == 0
    assert [copy["step"] for copy in mirrored(tmp_path / "mirror")["copies"]] == [4]


def lose_last_copy(mirror: Path) -> None:
    """Leave what a kill leaves that comes after status.json and before the last checkpoint."""
    pointer = mirrored(mirror)
    (mirror / pointer["copies"].pop()["name"]).unlink()
    (mirror / "mirror.json").write_text(json.dumps(pointer))


def test_a_run_lost_between_its_end_and_its_last_copy_goes_on(image_folder, tmp_path):
    """On the same disk it is copied, on an empty one trained to its end."""
    mirror = tmp_path / "mirror"
    more = "--save_every_steps=2", f"--mirror={mirror}"
    first, second = (
        train_words(*tiny_flags(image_folder, tmp_path / name), *more, "--max_steps=4")
        for name in ("1", "2")
    )
    # Step 2 by itself: copying may pass over a checkpoint that another one follows at once.
    assert run_here([*first, "--max_steps=2"], tmp_path).code == 0
    assert run_here(first, tmp_path).code == 0
    lose_last_copy(mirror)
    status.write_status(tmp_path / "1", mirrored_step=2)
    assert run(first, tmp_path).code == 0
    assert mirrored(mirror)["copies"][-1]["step"] == 4
    lose_last_copy(mirror)
    assert status_of(mirror)["state"] == "done"
    result = run(second, tmp_path)
    assert result.code == 0 and f"restored from {mirror}: step 2" in result.out, result.err
    assert mirrored(mirror)["copies"][-1]["step"] == status_of(tmp_path / "2")["step"] == 4
    assert_same_end(tmp_path / "1", tmp_path / "2")
    result = run(second, tmp_path)
    assert result.code == 0 and "is done at step 4" in result.out
