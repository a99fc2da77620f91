"""`python train.py` as a process tree: signals, crashes, kills, locks and exit codes, all real."""

import os
import pty
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.commands import (
    environment,
    finish,
    processes_mentioning,
    run,
    start,
    tiny_flags,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.metadata_service import serve
from support.needs import needs_root
from support.runs import events_of, newest_checkpoint, status_of, steps_logged

pytestmark = pytest.mark.usefixtures("no_leftovers")


def long_flags(data_dir: Path, run_dir: Path, *more: object) -> list[object]:
    """A run that lasts until it is stopped, with loader processes."""
    return [*tiny_flags(data_dir, run_dir), "--epochs=100000", "--num_workers=2", *more]


def start_and_reach(words: list[object], cwd: Path, run_dir: Path, step: int):
    process = start(words, cwd)
    wait_for(lambda: len(steps_logged(run_dir)) >= step or process.poll() is not None)
    assert process.poll() is None, finish(process).err
    return process


def assert_free(data_dir: Path, run_dir: Path, cwd: Path) -> None:
    """Nothing of a run is left, and a new start gets its lock and resumes."""
    wait_for(lambda: not processes_mentioning(str(run_dir)), 20, "the end of all processes")
    step = status_of(run_dir)["step"]
    words = train_words(*long_flags(data_dir, run_dir, f"--max_steps={step + 1}"))
    result = run_here(words, cwd)
    assert result.code == 0, result.err


def test_it_trains_and_tells_when_done(image_folder, tmp_path):
    words = train_words(*tiny_flags(image_folder, tmp_path / "run"), "--price_per_hour=36")
    result = run(words, tmp_path)
    assert result.code == 0, result.err
    for text in (
        "batch 16 = 1 ranks x 2 micro-batches x 8",
        "done: 3 epochs",
        "final top-1",
        "cost $",
    ):
        assert text in result.out
    status = status_of(tmp_path / "run")
    assert (status["state"], status["step"]) == ("done", 12)
    assert status["cost_usd"] == pytest.approx(status["paid_s"] / 100, abs=1e-3)
    began = time.monotonic()
    again = run_here(words, tmp_path, as_rank=False)
    assert again.code == 0 and "is done at step 12" in again.out
    before = (tmp_path / "run" / "status.json").read_bytes()
    fewer = run_here([*words, "--max_steps=5"], tmp_path, as_rank=False)
    assert fewer.code == 0 and "is done at step 12" in fewer.out
    assert (tmp_path / "run" / "status.json").read_bytes() == before
    assert time.monotonic() - began < 60


@needs_root
def test_one_host_needs_no_names(image_folder, tmp_path):
    """Neither its own, as in containers and on renamed hosts, nor localhost."""
    script = 'hostname no-such-host && mount --bind /dev/null /etc/hosts && exec "$@"'
    words = train_words(*tiny_flags(image_folder, tmp_path / "run"), "--max_steps=2")
    nameless = ["unshare", "--uts", "--mount", "sh", "-c", script, "sh"]
    result = finish(start([*nameless, *words], tmp_path), 120)
    assert result.code == 0 and "done" in result.out, result.err
    assert "cannot be retrieved" not in result.err


def test_ctrl_c_twice_ends_at_once_and_resumably(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    process = start_and_reach(train_words(*long_flags(image_folder, run_dir)), tmp_path, run_dir, 3)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    result = finish(process)
    assert result.code == 75 and "Traceback" not in result.err
    assert status_of(run_dir)["state"] == "interrupted"


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_second_start_is_refused_and_one_signal_saves_and_exits_75(
    image_folder, tmp_path, signum
):
    run_dir = tmp_path / "run"
    words = train_words(*long_flags(image_folder, run_dir, "--save_every_steps=0"))
    process = start_and_reach(words, tmp_path, run_dir, 6)
    before = status_of(run_dir)["attempt"]
    supervised, alone = (run_here(words, tmp_path, as_rank=rank) for rank in (False, True))
    for second in (supervised, alone):
        assert second.code == 2 and f"--run_dir {run_dir} is in use by process" in second.err
    assert str(process.pid) in supervised.err
    assert status_of(run_dir)["attempt"] == before
    process.send_signal(signum)
    result = finish(process)
    assert result.code == 75 and "Traceback" not in result.err
    status = status_of(run_dir)
    assert status["state"] == "interrupted"
    assert newest_checkpoint(run_dir).name == f"step_{status['step']:09d}.pt"
    assert len(steps_logged(run_dir)) == status["step"]


def test_sigterm_to_every_process_twice_saves_and_exits_75(image_folder, tmp_path):
    """As Slurm tells a job to make room. Nothing says that a process was killed."""
    run_dir = tmp_path / "run"
    words = train_words(*long_flags(image_folder, run_dir, "--save_every_steps=0"))
    process = start_and_reach(words, tmp_path, run_dir, 6)
    for _ in range(2):
        for pid in processes_mentioning(str(run_dir)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.1)
    result = finish(process)
    assert result.code == 75 and "Traceback" not in result.err, result.err
    status = status_of(run_dir)
    assert status["state"] == "interrupted"
    assert newest_checkpoint(run_dir).name == f"step_{status['step']:09d}.pt"


def test_sigusr1_saves_and_goes_on_and_a_spot_notice_ends_it(image_folder, tmp_path):
    """To the supervisor, early and late, to torchrun's whole group, and the notice last."""
    run_dir = tmp_path / "run"
    words = train_words(*long_flags(image_folder, run_dir, "--save_every_steps=0"))
    with serve() as service:
        process = start(words, tmp_path, **service.environment)
        wait_for(lambda: torchrun_of(run_dir))
        process.send_signal(signal.SIGUSR1)
        for count in (1, 2):
            goal = len(steps_logged(run_dir)) + 3
            wait_for(lambda goal=goal: len(steps_logged(run_dir)) >= goal)
            process.send_signal(signal.SIGUSR1)
            os.killpg(torchrun_of(run_dir)[0], signal.SIGUSR1)
            wait_for(lambda count=count: sum("SIGUSR1" in e for e in events_of(run_dir)) >= count)
        attempt = status_of(run_dir)["attempt"]
        service.give_notice()
        result = finish(process)
    assert result.code == 75 and "Traceback" not in result.err
    assert "nothing to save yet" in result.out and "restarting" not in result.out
    assert result.out.count("saving after this step, then continuing") == 2
    status = status_of(run_dir)
    assert (status["state"], status["attempt"]) == ("interrupted", attempt)
    assert newest_checkpoint(run_dir).name == f"step_{status['step']:09d}.pt"
    assert "spot notice: terminate" in events_of(run_dir)[-1]


def torchrun_of(run_dir: Path) -> list[int]:
    return [p for p in processes_mentioning(str(run_dir)) if "torch.distributed.run" in command(p)]


def test_a_signal_during_start_up_ends_it(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    process = start(train_words(*long_flags(image_folder, run_dir)), tmp_path)
    wait_for(lambda: (run_dir / ".supervisor.lock").exists())
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    assert result.code == 75 and "Traceback" not in result.err


def test_a_dropped_connection_changes_nothing(image_folder, tmp_path):
    """The terminal hangs up, is gone, and cannot be written to; training continues to its end."""
    run_dir = tmp_path / "run"
    flags = [*tiny_flags(image_folder, run_dir), "--epochs=30"]
    words = [str(word) for word in train_words(*flags)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, words, environment())
    seen = b""
    while b"epoch 1/30" not in seen:
        seen += os.read(terminal, 10_000)
    os.close(terminal)  # the kernel sends SIGHUP to the terminal's session
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert status_of(run_dir)["state"] == "done" and status_of(run_dir)["step"] == 120


def test_a_crash_is_restarted_as_long_as_checkpoints_advance(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    process = start(train_words(*tiny_flags(image_folder, run_dir), "--epochs=500"), tmp_path)
    killed = 0
    for step in (10, 20):
        wait_for(lambda step=step: len(steps_logged(run_dir)) >= step)
        before = status_of(run_dir)["attempt"]
        for pid in ranks_of(run_dir):
            os.kill(pid, signal.SIGKILL)
            killed += 1
        wait_for(lambda before=before: status_of(run_dir)["attempt"] != before)
    wait_for(lambda: len(steps_logged(run_dir)) >= 30)
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    assert killed == 2 and result.code == 75
    assert result.out.count("training crashed; restarting from step") == 2


def ranks_of(run_dir: Path) -> list[int]:
    """The training processes of a run, without supervisor, torchrun and loaders."""
    ids = processes_mentioning(str(run_dir))
    parents = {
        pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in ids
    }
    is_torchrun = {pid: "torch.distributed.run" in command(pid) for pid in ids}
    return [pid for pid in ids if is_torchrun.get(parents[pid]) and not is_torchrun[pid]]


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


def test_a_crash_that_makes_no_progress_is_not_repeated(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    words = train_words(*long_flags(image_folder, run_dir, "--save_every_steps=0"))
    words += ["--eval_every_epochs=9999", "--total_batch_size=64", "--device_batch_size=64"]
    process = start(words, tmp_path)
    wait_for(lambda: ranks_of(run_dir))
    time.sleep(0.5)
    for pid in ranks_of(run_dir):
        os.kill(pid, signal.SIGKILL)
    result = finish(process)
    assert result.code == 1 and "crashed without making progress" in result.out
    assert status_of(run_dir).get("state", "crashed") == "crashed"


@pytest.mark.parametrize(
    "victim",
    [
        "supervisor",
        "rank",
        *(pytest.param(v, marks=pytest.mark.long) for v in ("torchrun", "loader")),
    ],
)
def test_killing_any_one_process_leaves_none_running_alone(image_folder, tmp_path, victim):
    run_dir = tmp_path / "run"
    process = start_and_reach(train_words(*long_flags(image_folder, run_dir)), tmp_path, run_dir, 4)
    ids = set(processes_mentioning(str(run_dir)))
    rank = ranks_of(run_dir)[0]
    torchrun = next(pid for pid in ids if "torch.distributed.run" in command(pid))
    loaders = sorted(ids - {rank, torchrun, process.pid})
    assert len(loaders) == 2
    chosen = {"supervisor": process.pid, "torchrun": torchrun, "rank": rank, "loader": loaders[-1]}
    os.kill(chosen[victim], signal.SIGKILL)
    if victim == "supervisor":
        finish(process)
    else:  # it restarts what died, and then stops when told
        wait_for(lambda: ranks_of(run_dir) not in ([], [rank]))
        attempt = status_of(run_dir)["attempt"]
        wait_for(lambda: status_of(run_dir)["attempt"] != attempt or len(steps_logged(run_dir)) > 8)
        process.send_signal(signal.SIGTERM)
        assert finish(process).code in (75, 1)
    assert_free(image_folder, run_dir, tmp_path)
