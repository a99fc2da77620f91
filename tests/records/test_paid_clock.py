"""The clock of a run: what a start, a kill, and a resume count, and what is read from the disk."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import run, tiny_flags, train_words
from support.in_process import run_here
from support.runs import events_of, status_of

from resnet50.records import ownership, paid_clock
from resnet50.records.paid_clock import PaidClock


class Time:
    """A clock that goes when it is told to."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def begin(folder: Path, time: Time) -> PaidClock:
    before_s = paid_clock.paid_before(folder)
    return PaidClock(folder, before_s, time(), is_kept_here=True, clock=time)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), max_size=5))
def test_attempts_add_up_and_a_kill_costs_less_than_two_seconds(tmp_path_factory, attempts):
    """An attempt: seconds until it is killed, and then until the next one."""
    folder, time, total_s = tmp_path_factory.mktemp("run"), Time(), 0.0
    for lasted_s, pause_s in attempts:
        clock = begin(folder, time)
        clock.keep()
        began_s = time.now_s
        for share in (0.3, 0.9, 1.0):  # the last moments, looked at four times a second
            time.now_s = max(time.now_s, began_s + share * lasted_s - 1.0)
            for _ in range(4):
                clock.keep()
                time.now_s = min(time.now_s + 0.25, began_s + lasted_s)
        total_s += lasted_s
        time.now_s += pause_s
    assert total_s - 2 * len(attempts) - 1 <= paid_clock.read(folder) <= total_s + 0.01


def test_the_file_is_written_once_a_second_and_only_where_it_is_kept(tmp_path):
    time = Time()
    clock = begin(tmp_path, time)
    path = tmp_path / ownership.PAID
    found = []
    for _ in range(10):
        clock.keep()
        found.append(paid_clock.read(tmp_path))
        time.now_s += 0.25
    assert found == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert PaidClock(tmp_path, 7.0, time(), clock=time).keep() is None
    assert paid_clock.read(tmp_path) == 2 and len(path.read_bytes()) == paid_clock.TEXT_BYTES
    PaidClock(tmp_path, 123456.0, time(), clock=time).write()
    PaidClock(tmp_path, 0.0, time(), clock=time).write()
    assert paid_clock.read(tmp_path) == 0


@pytest.mark.parametrize("text", [b"", b"soon", b"-5", b"1e3", b"\xff" * 20, b"5 6"])
def test_what_is_no_number_counts_for_nothing(tmp_path, text):
    (tmp_path / ownership.PAID).write_bytes(text)
    assert paid_clock.paid_before(tmp_path) == 0
    (tmp_path / "status.json").write_text('{"paid_s": 5.5}')
    assert paid_clock.paid_before(tmp_path) == 5.5  # of a run from before there was the file


def test_the_later_of_file_and_status_counts_and_a_fresh_run_begins_at_zero(tmp_path, monkeypatch):
    monkeypatch.delenv(paid_clock.HANDED_ON, raising=False)
    (tmp_path / ownership.PAID).write_bytes(b"  7000\n")
    (tmp_path / "status.json").write_text(json.dumps({"paid_s": 5.5}))
    assert 7 <= PaidClock.begin(tmp_path).paid_s < 8
    assert 7 <= PaidClock.of_rank(tmp_path).paid_s < 8
    assert PaidClock.begin(tmp_path, fresh=True).paid_s < 1


def test_a_rank_reads_the_supervisors_clock(tmp_path, monkeypatch):
    time = Time()
    clock = PaidClock(tmp_path, 60.0, time(), is_kept_here=True, clock=time)
    (variable,) = clock.for_ranks().items()
    monkeypatch.setenv(*variable)
    time.now_s += 2
    theirs = PaidClock.of_rank(tmp_path)
    theirs._clock = time
    assert theirs.paid_s == clock.paid_s == 62
    theirs.keep()
    assert not (tmp_path / ownership.PAID).exists()


def test_a_command_counts_from_its_own_start_and_a_program_that_calls_it_does_not(tmp_path):
    script = "import time; time.sleep(0.5)\n"
    script += "from resnet50.records import paid_clock\n"
    script += "print(time.monotonic() - paid_clock.start_of_command())\n"
    for name, counts in (("train", True), ("notebook", False)):
        (tmp_path / f"{name}.py").write_text(script)
        repository = Path(paid_clock.__file__).parents[2]
        result = run(
            [sys.executable, tmp_path / f"{name}.py"], tmp_path, PYTHONPATH=str(repository)
        )
        assert result.code == 0, result.err
        assert (float(result.out) >= 0.5) == counts and float(result.out) < 60


def test_limits_and_dollars_read_the_clock(image_folder, tmp_path):
    flags = [*tiny_flags(image_folder, tmp_path / "run"), "--price_per_hour=36"]
    assert run_here(train_words(*flags, "--max_steps=5"), tmp_path).code == 0
    (tmp_path / "run" / ownership.PAID).write_bytes(b"600000\n")
    flags += ["--max_steps=0", "--max_minutes=10"]
    result = run_here(train_words(*flags), tmp_path)
    assert result.code == 0 and "resuming at step 5" in result.out, result.err
    status = status_of(tmp_path / "run")
    assert status["step"] == 5 and 600 <= status["paid_s"] < 660
    assert status["cost_usd"] == pytest.approx(status["paid_s"] / 100, abs=1e-3)
    assert paid_clock.read(tmp_path / "run") >= 600
    assert not [text for text in events_of(tmp_path / "run") if "from now on" in text]
