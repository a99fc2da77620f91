"""The host ends with the purse: a shutdown that is scheduled as setup begins, moved at each start
of the training, shown by --status, and canceled by --stop. The shutdown is a stand-in."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import (
    REPOSITORY,
    environment,
    host_words,
    processes_mentioning,
    run,
    wait_for,
)
from support.metadata_service import FakeService
from support.needs import needs_root

from host import background, meter, service, shut_down
from host.background import Launch
from resnet50.records import status
from resnet50.run import instance_price

# Notes what it is asked, and keeps the file that systemd-logind keeps.
SHUTDOWN = """\
#!/bin/sh
echo "$*" >>CALLS
case $1 in
    -c) rm -f SCHEDULED ;;
    *)
        {
            echo "USEC=$((($(date +%s) + 60 * ${2#+}) * 1000000))"
            printf 'WARN_WALL=1\\nMODE=poweroff\\n'
            [ -z "$3" ] || echo "WALL_MESSAGE=$3"
        } >SCHEDULED ;;
esac
"""
TWO_HOURS_AND_LATE = "-h +140 "  # 120 minutes, 3% of them, and 16
ONE_HOUR_LEFT = "-h +80 "


class Meter:
    """A host with systemd, and host/service.py there, in this process."""

    def __init__(self, in_process, folder: Path) -> None:
        self._in_process, self.run_dir = in_process, folder / "run"
        self.calls, self.scheduled = folder / "calls", folder / "systemd" / "scheduled"
        self.scheduled.parent.mkdir()
        self.path = install(folder / "bin", self.calls, self.scheduled)
        in_process.monkeypatch.setenv("PATH", self.path)
        in_process.monkeypatch.setattr(shut_down, "BOOTED", folder)
        in_process.monkeypatch.setattr(shut_down, "problem", lambda: "")
        in_process.monkeypatch.setattr(meter, "SCHEDULED", self.scheduled)
        in_process.monkeypatch.setattr(meter, "as_root", lambda *words: list(words))

    def __call__(self, do: str, *flags: object):
        return self._in_process(service, do, f"--run_dir={self.run_dir}", *flags)

    def begin(self, *flags: object):
        """As setup begins."""
        return self("meter", "--then=stop-host", *(flags or ["--budget_hours=2"]))

    def restart(self):
        """As the unit does before each start of the training."""
        return self("meter", "--then=stop-host", "--purse_s=7200")

    def paid(self, seconds: int) -> None:
        self.run_dir.mkdir(exist_ok=True)
        (self.run_dir / status.PAID).write_text(f"{1000 * seconds}\n")

    def asked(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


def install(folder: Path, calls: Path, scheduled: Path) -> str:
    """The stand-in; returns a PATH that begins with it."""
    folder.mkdir()
    text = SHUTDOWN.replace("CALLS", str(calls)).replace("SCHEDULED", str(scheduled))
    (folder / "shutdown").write_text(text)
    (folder / "shutdown").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def store(run_dir: Path, **settings: object) -> None:
    """As a run does that was planned."""
    run_dir.mkdir(exist_ok=True)
    budget = {"budget_usd": 0.0, "budget_hours": 0.0, "price_per_hour": 0.0}
    (run_dir / status.CONFIG).write_text(json.dumps({"settings": budget | settings}))


@pytest.fixture
def host(in_process, tmp_path) -> Meter:
    return Meter(in_process, tmp_path)


def test_it_is_scheduled_before_training_and_moved_by_what_was_paid(host):
    said = host.begin()
    assert said.code == 0 and "this host is SHUT DOWN at 20" in said.out, said.err
    assert f"--stop --run_dir {host.run_dir}` cancels that" in said.out
    assert [call[: len(TWO_HOURS_AND_LATE)] for call in host.asked()] == [TWO_HOURS_AND_LATE]
    assert "SHUT DOWN" in host.begin().out and len(host.asked()) == 1  # setup, called again
    host.restart()
    assert host.asked()[1].startswith(TWO_HOURS_AND_LATE)
    host.paid(3600)
    host.restart()
    assert host.asked()[2].startswith(ONE_HOUR_LEFT)
    host.paid(9999)  # a purse that is empty: what it takes to save and to tell
    assert "SHUT DOWN" in host.restart().out and host.asked()[3].startswith("-h +20 ")
    shown = host("status")
    assert shown.code == 2 and "no run in" in shown.err
    (host.run_dir / "status.json").write_text('{"state": "interrupted", "attempt": "a"}')
    assert "this host is SHUT DOWN at 20" in host("status").out


def test_another_purse_moves_it(host):
    host.begin("--budget_hours=1")
    host.begin("--budget_hours=1")
    assert len(host.asked()) == 1 and host.asked()[0].endswith(", purse 3600 s)")
    assert "SHUT DOWN" in host.begin("--budget_hours=2").out
    assert [call[:8] for call in host.asked()[1:]] == [TWO_HOURS_AND_LATE]
    assert host("stop").code == 0 and host.asked()[-1] == "-c"


def test_a_run_that_is_there_has_the_purse_that_it_was_planned_with(host):
    """Whatever this host costs, and whether or not the budget is given again."""
    store(host.run_dir, budget_usd=5.0, price_per_hour=2.5)
    host.begin("--budget_usd=5", "--price_per_hour=20")
    assert host("meter", "--then=stop-host").code == 0
    assert [call[:8] for call in host.asked()] == [TWO_HOURS_AND_LATE]
    host("meter", "--then=stop-host", "--purse_s=60")
    assert host.asked()[1].startswith(TWO_HOURS_AND_LATE)
    for settings in ({"budget_hours": 2.0}, {"budget_hours": 2.0, "price_per_hour": 9.0}):
        store(host.run_dir, **settings)
        assert meter.stored_purse_s(host.run_dir) == 7200
    for text in ("", "[]", "{", '{"settings": [3]}', '{"settings": {"budget_usd": 5}}'):
        (host.run_dir / status.CONFIG).write_text(text)
        assert meter.stored_purse_s(host.run_dir) == 0


def test_stop_cancels_it_even_where_training_never_began(host):
    host.begin()
    stopped = host("stop")
    assert stopped.code == 0 and "is canceled" in stopped.out, stopped.err
    assert host.asked()[1:] == ["-c"] and not host.scheduled.exists()
    assert host("stop").code == 2 and len(host.asked()) == 2  # there is nothing left to stop


def test_a_shutdown_of_somebody_else_is_neither_put_off_nor_canceled(host):
    subprocess.run(
        [host.path.split(":")[0] + "/shutdown", "-h", "+30", "kernel update"], check=True
    )
    assert "has a shutdown scheduled for" in host.begin().out
    host.run_dir.mkdir()
    (host.run_dir / "status.json").write_text('{"state": "interrupted"}')
    assert "SHUT DOWN" not in host("status").out and host("stop").code == 0
    assert host.asked() == ["-h +30 kernel update"]
    subprocess.run([host.path.split(":")[0] + "/shutdown", "-h", "+999"], check=True)
    host.begin()  # one that comes too late
    assert host.asked()[-1].startswith(TWO_HOURS_AND_LATE)


@pytest.mark.parametrize("then", ["nothing", "stop-host-when-done"])
def test_it_belongs_to_then_stop_host(host, then):
    assert host("meter", f"--then={then}", "--budget_hours=2").out == ""
    assert host("meter", "--then=stop-host").out == "" and not host.asked()


def test_a_run_that_trains_or_has_ended_is_left_as_it_is(host):
    host.run_dir.mkdir()
    for state in status.ENDED:
        (host.run_dir / "status.json").write_text(f'{{"state": "{state}", "attempt": "a"}}')
        assert host.begin().out == "" and not host.asked()
    # Scheduled while the volume was not mounted, and so before it was known.
    (host.run_dir / "status.json").unlink()
    host.begin()
    (host.run_dir / "status.json").write_text('{"state": "done", "attempt": "a"}')
    settled = host("is_settled", "--then=stop-host", "--budget_hours=2")
    assert settled.code == 0 and "this host stays up" in settled.out
    assert host.asked()[1:] == ["-c"]


def test_dollars_need_a_price(host, service: FakeService):
    for name, value in service.environment.items():
        host._in_process.monkeypatch.setenv(name, value)
    host.begin("--budget_usd=4", "--price_per_hour=2")
    assert host.asked()[-1].startswith(TWO_HOURS_AND_LATE)
    host.scheduled.unlink()
    for price in ([], ["--price_per_hour=0"], ["--price_per_hour=auto"]):
        refused = host.begin("--budget_usd=4", *price)
        assert refused.code == 2 and "--budget_usd 4 needs the price of this host" in refused.err
    service.found[instance_price.INSTANCE_TYPE] = "g5.4xlarge"
    host.begin("--budget_usd=3.248", "--price_per_hour=auto")
    assert host.asked()[-1].startswith(TWO_HOURS_AND_LATE) and len(host.asked()) == 2


def test_without_systemd_it_says_that_it_cannot(host, tmp_path):
    host._in_process.monkeypatch.setattr(shut_down, "BOOTED", tmp_path / "no")
    said = host.begin()
    assert said.code == 0 and "warning: only systemd can schedule" in said.out and not host.asked()


def test_a_dry_run_schedules_nothing(host):
    said = host.begin("--budget_hours=2", "--dry_run")
    assert "shutdown -h +140 'the budget of the training in" in said.out and not host.asked()


def test_unit_and_shell_schedule_it_before_each_start(host, tmp_path, monkeypatch):
    launch = Launch(host.run_dir, ["train.py"], "env true", "stop-host", "", 7200.0)
    monkeypatch.setattr(background, "as_root", lambda *words: ["sudo", *words])
    before, scheduling, training, after = background.shell_line(launch).split("; ")
    assert before == "sudo env env true" and training == "train.py" and " after " in after
    assert scheduling.startswith("sudo env --chdir=") and "--purse_s=7200" in scheduling
    assert background.before_words(Launch(host.run_dir, ["train.py"], "", "stop-host", "")) == []


# What trains, for these tests: it keeps the folder as a supervisor does, until it is told to end.
TRAIN = """\
import signal, sys, time
from pathlib import Path
from resnet50.records import status
from resnet50.system.locking import FolderLock
lock = FolderLock(Path(sys.argv[1]), status.SUPERVISOR_LOCK)
def end(*_):
    status.write_status(Path(sys.argv[1]), state=status.INTERRUPTED)
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
status.write_status(Path(sys.argv[1]), state=status.RUNNING, attempt=str(time.time()), step=1)
time.sleep(300)
"""


@needs_root
@pytest.mark.usefixtures("no_leftovers")
def test_from_the_start_of_the_setup_to_the_stop(tmp_path):
    """With real processes, in a session of their own, on a host that systemd has booted."""
    run_dir, calls = tmp_path / "run", tmp_path / "calls"
    run_folder = tmp_path / "var_run"
    (run_folder / "systemd" / "system").mkdir(parents=True)
    (run_folder / "systemd" / "shutdown").mkdir()
    path = install(tmp_path / "bin", calls, Path("/run/systemd/shutdown/scheduled"))
    (tmp_path / "train.py").write_text(TRAIN)

    def call(do: str, *flags: object):
        script = f'mount --bind {run_folder} /run && exec "$@"'
        words = host_words("service", do, f"--run_dir={run_dir}", *flags)
        return run(["unshare", "--mount", "sh", "-c", script, "sh", *words], tmp_path, PATH=path)

    purse = ["--then=stop-host", "--budget_hours=2"]
    assert call("meter", *purse).code == 0
    run_dir.mkdir()
    (run_dir / status.PAID).write_text("3600000\n")
    command = ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, tmp_path / "train.py", run_dir]
    started = call("start", "--way=setsid", *purse, "--", *command)
    assert started.code == 0 and "this host is SHUT DOWN at 20" in started.out, started.err
    assert "at the latest, when the budget is spent" in call("status").out
    asked = calls.read_text().splitlines()
    assert asked[0].startswith(TWO_HOURS_AND_LATE) and asked[1].startswith(ONE_HOUR_LEFT)
    os.kill(status.supervisor_of(run_dir), signal.SIGTERM)  # not by --stop: it may go on hanging
    wait_for(lambda: not processes_mentioning(str(run_dir)), what="the end of the shell")
    assert "SHUT DOWN" in (run_dir / "console.log").read_text().splitlines()[-1]
    stopped = call("stop")
    assert stopped.code == 0 and "is canceled" in stopped.out and "interrupted" in stopped.out
    assert calls.read_text().splitlines()[2:] == ["-c"]
    assert "SHUT DOWN" not in call("status").out


@pytest.mark.parametrize(
    "flags, code, text",
    [
        (["--budget_hours=2", "--then=stop-host"], 0, "host.service meter --run_dir"),
        (
            ["--budget_usd=5", "--price_per_hour=auto", "--then=stop-host"],
            2,
            "--budget_usd 5 needs",
        ),
        (["--budget_usd=5"], 2, "--budget_usd 5 needs the price of this host"),
        (["--budget_usd=0", "--price_per_hour=1"], 2, "--budget_usd 0: give a number above 0"),
        (["--budget_hours=-1"], 2, "--budget_hours -1: give a number above 0"),
        (["--budget_hours=1", "--max_steps=5"], 2, "--budget_hours and --max_steps exclude"),
        (["--budget_hours=1", "--budget_usd=5"], 2, "exclude each other: give one"),
    ],
)
def test_setup_hands_the_budget_on(tmp_path, flags, code, text):
    result = subprocess.run(
        ["bash", REPOSITORY / "setup_and_train.sh", "--dry_run", f"--data_dir={tmp_path}", *flags],
        env=environment(VENV="/none"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = result.stdout + result.stderr
    assert text in said, said
    assert result.returncode == code or "without --dry_run, setup would stop here" in said
    if code == 0:
        (line,) = (line for line in said.splitlines() if "host.service start" in line)
        assert line.count("--budget_hours 2") == 2  # for the host, and for train.py
