"""What `python train.py` runs: torchrun with restarts, forwarded signals and a true exit code.

torchrun exits with 1 whatever a rank exited with, so the outcome is read from the run's
status.json, which carries this attempt's id. A crashed run is restarted from the newest checkpoint
as long as it gets further each time; one that crashes at the same step again is not. SIGUSR1 makes
the ranks save and continue.

Exit codes: 0 done, 1 crashed, 2 the user must change something, 3 diverged, 75 interrupted and
resumable.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from resnet50.config import train_flags
from resnet50.config.command_line import print_error
from resnet50.config.train_config import NO_MIRROR, TrainConfig
from resnet50.config.train_flags import CPU, Request
from resnet50.records import checkpoint, ownership, run_folder, status
from resnet50.records.paid_clock import PaidClock
from resnet50.run import heartbeat, instance_price, mirror_start, on_end
from resnet50.run.resolve import resolve, with_data
from resnet50.system import processes
from resnet50.system.locking import FolderLock

ATTEMPT = "TRAIN_ATTEMPT"  # environment variable: the id that the ranks write to status.json
POLL_S = 0.1
REPORT_S = 2.0  # for the ranks to print where they hang
NO_LIMIT = "--max_minutes 0 --max_steps 0 --target_top1 0"


@dataclass(frozen=True)
class Start:
    """A start that nothing speaks against."""

    cfg: TrainConfig
    lock: FolderLock
    num_gpus: int
    mirror_owner: str  # with which it holds the lock of its mirror
    said_of_price: str  # empty unless --price_per_hour auto was asked for
    paid_clock: PaidClock | None  # None: the run is done


def supervise(request: Request, argv: Sequence[str], script: str) -> int:
    """Check the settings, and run `script` with argv under torchrun; returns the exit code.

    A run that is done is left alone, unless new limits let it continue.
    """
    # As a pod's first process it would otherwise ignore the signal.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        start = check(request)
    except (ValueError, OSError) as error:
        print_error("train.py", error)
        return status.EXIT_CODES[mirror_start.state_after(error)]
    except KeyboardInterrupt:  # while it waits for a mirror
        return status.EXIT_CODES[status.INTERRUPTED]
    finally:
        signal.signal(signal.SIGTERM, before)
    cfg, run_dir = start.cfg, Path(start.cfg.run_dir)
    if start.paid_clock is None:
        mirror_start.release(cfg, start.mirror_owner)
        say_done(cfg, status.known_status(run_dir))
        if request.on_end:  # in case that a kill came before it was told
            on_end.tell(request.on_end, cfg, 0, say=_say)
        return 0
    # The ranks get the same words, and so the same settings.
    words = train_flags.for_ranks(argv)
    command = [script, *words, f"--run_dir={run_dir}", f"--data_dir={cfg.data_dir}"]
    if start.said_of_price:  # asked once, so that all ranks and restarts count with the same
        _say(start.said_of_price)
        command.append(f"--price_per_hour={cfg.price_per_hour!r}")
    supervisor = Supervisor(
        command,
        max(1, start.num_gpus),
        run_dir,
        hang_s=60 * cfg.hang_minutes,
        paid_clock=start.paid_clock,
        mirror_owner=start.mirror_owner,
    )
    code = supervisor.run()
    # Still "running": no rank was left to write the outcome.
    if status.known_status(run_dir).get("state") == status.RUNNING:
        was_interrupted = code == status.EXIT_CODES[status.INTERRUPTED]
        state = status.INTERRUPTED if was_interrupted else status.CRASHED
        status.write_status(run_dir, state=state)
    if request.on_end:
        before = supervisor.num_signals
        is_unwanted = lambda: supervisor.num_signals > before
        on_end.tell(request.on_end, cfg, code, say=_say, is_unwanted=is_unwanted)
    start.lock.release()
    return code


def check(request: Request) -> Start:
    """Take the run's folder and mirror, and read its settings. Raises ValueError naming what the
    user must change, and OSError."""
    cfg = with_data(resolve(request))
    run_dir = Path(cfg.run_dir)
    mirror_start.check_place(cfg)
    ownership.refuse_foreign(run_dir)
    num_gpus = 0 if request.device == CPU else torch.cuda.device_count()
    may_use_cpu = num_gpus or request.device == CPU
    if not (may_use_cpu or request.fresh):
        run_folder.refuse_cpu(run_dir)
    # Two locks: the supervisor's, by which host/ finds the training process, and the rank's.
    lock = FolderLock(run_dir, status.SUPERVISOR_LOCK)
    FolderLock(run_dir).release()  # a plain torchrun may be training there
    mirror_owner = mirror_start.new_owner()
    try:
        if mirror_start.prepare(cfg, request, mirror_owner, _say):
            # Those of the run that is there now; the data's folder may be another one there.
            cfg = dataclasses.replace(resolve(request), data_dir=cfg.data_dir)
            if not may_use_cpu:
                run_folder.refuse_cpu(run_dir)
        return check_run(cfg, request, lock, num_gpus, mirror_owner)
    except BaseException:
        mirror_start.release(cfg, mirror_owner)
        raise


def check_run(
    cfg: TrainConfig, request: Request, lock: FolderLock, num_gpus: int, mirror_owner: str
) -> Start:
    """The rest of `check`, with the settings of a run that may have been restored."""
    run_dir = Path(cfg.run_dir)
    cfg, said_of_price = instance_price.settled(cfg, request.settings)
    if request.fresh:
        run_folder.make_room(run_dir, request.overwrite)
    ended, stored = status.known_status(run_dir), run_folder.read_settings(run_dir)
    is_done = ended.get("state") == status.DONE and stored is not None and is_mirrored(cfg, ended)
    paid_clock = None
    if not is_done or is_prolonged(cfg, stored, ended.get("step", 0)):
        run_folder.refuse_lost_checkpoints(run_dir)
        paid_clock = PaidClock.begin(run_dir, request.fresh)
        paid_clock.keep()
    return Start(cfg, lock, num_gpus, mirror_owner, said_of_price, paid_clock)


def is_mirrored(cfg: TrainConfig, ended: Mapping[str, object]) -> bool:
    """Whether nothing is left to copy: a kill may have come after the run's end and before its last
    checkpoint was in the mirror. ended: the run's status.json."""
    known = status.numbers(ended)
    return cfg.mirror == NO_MIRROR or known.get("mirrored_step", -1) >= known.get("step", 0)


def say_done(cfg: TrainConfig, ended: Mapping[str, object]) -> None:
    """Say that there is nothing to do, and how there would be; ended: the run's status.json."""
    has_checkpoint = checkpoint.files_in(run_folder.checkpoints_dir(Path(cfg.run_dir)))
    is_limited = cfg.max_minutes or cfg.max_steps or cfg.target_top1
    no_limit = f"; without a limit: python train.py --run_dir {cfg.run_dir} {NO_LIMIT}"
    _say(
        f"the run in {cfg.run_dir} is done at step {ended.get('step')}, best top-1 "
        f"{ended.get('best_top1') or 0:.2f}%. Give a new --run_dir to train another one"
        f"{no_limit if is_limited and has_checkpoint else ''}"
    )


def is_prolonged(cfg: TrainConfig, stored: dict[str, object], step: int) -> bool:
    """Whether new limits let a run that ended at `step` continue, or it has a new mirror, to which
    its ranks copy it."""
    if cfg.mirror not in (NO_MIRROR, stored.get("mirror", NO_MIRROR)):
        return True
    if any(getattr(cfg, name) != stored.get(name, 0) for name in ("max_minutes", "target_top1")):
        return True
    return cfg.max_steps != stored["max_steps"] and not 0 < cfg.max_steps <= step


class Supervisor:
    """Runs one command under torchrun until its run has an outcome."""

    def __init__(
        self,
        command: Sequence[str],
        num_ranks: int,
        run_dir: Path,
        *,
        hang_s: float,
        paid_clock: PaidClock,
        mirror_owner: str = "",
    ) -> None:
        """hang_s: seconds without a heartbeat, after the first one, before a run counts as hung;
        paid_clock: kept here, since a step or an evaluation may take its ranks any time;
        mirror_owner: with which this start holds the lock of its mirror."""
        self.mirror_owner = mirror_owner
        self.command, self.num_ranks = list(command), num_ranks
        self.run_dir, self.hang_s, self.paid_clock = run_dir, hang_s, paid_clock
        self.num_signals = 0  # that ask to stop
        self.wants_save = False

    def run(self) -> int:
        """Train to the end, restarting after crashes that got further; returns the exit code."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_save)
        # A dropped SSH connection sends SIGHUP: training continues without the terminal, and
        # must not end with it.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        furthest = self._saved_step()
        while True:
            # status.json may still describe the attempt before: only what carries this id counts.
            attempt, last_beat = uuid.uuid4().hex, heartbeat.read(self.run_dir)
            self._watch(self._start(attempt), attempt)
            state = status.state_of(self.run_dir, attempt)
            if state in status.EXIT_CODES:
                return status.EXIT_CODES[state]
            if self.num_signals:
                return status.EXIT_CODES[status.INTERRUPTED]
            # A run that crashes at the same place would restart forever. The heartbeat counts too:
            # a rank that the OOM killer ended before the first checkpoint deserves another try.
            reached = max(self._step_since(last_beat), self._saved_step())
            if reached <= furthest:
                _say("training crashed without making progress: not restarting")
                return 1
            furthest = reached
            _say(f"training crashed; restarting from step {max(self._saved_step(), 0)}")

    def _saved_step(self) -> int:
        """Step of the newest checkpoint; -1 without one."""
        return checkpoint.newest_step(run_folder.checkpoints_dir(self.run_dir))

    def _step_since(self, last_beat: tuple[int, int]) -> int:
        """The step that an attempt reached; -1 if it reached none."""
        beat = heartbeat.read(self.run_dir)
        return beat[1] if beat != last_beat else -1

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        # Only a second Ctrl-C means "now": Slurm tells a job to make room twice within a second.
        if signum == signal.SIGINT or not self.num_signals:
            self.num_signals += 1

    def _on_save(self, signum: int, frame: FrameType | None) -> None:
        self.wants_save = True

    def _start(self, attempt: str) -> subprocess.Popen:
        """Start torchrun in its own session, so that Ctrl-C reaches us alone, and arrives once."""
        parent_pid = os.getpid()
        # -P: keeps the current folder off sys.path, where a user's file may shadow a Python module.
        torchrun = [sys.executable, "-P", "-m", "torch.distributed.run"]
        # --standalone, by number: it looks up "localhost" and this host's own name, which nothing
        # may resolve (containers, renamed hosts); it would then try for five minutes, and again.
        torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
        torchrun += ["--max-restarts=0", f"--nproc_per_node={self.num_ranks}"]
        # Not SIGHUP: torchrun would handle it again and end the job when a connection drops. Nor
        # SIGTERM, which it ignores (_prepare_torchrun).
        torchrun += ["--signals-to-handle=SIGINT,SIGQUIT"]
        # Ranks check for the supervisor's id: if torchrun died while they imported, they die too.
        environment = {ATTEMPT: attempt, processes.SUPERVISOR_PID: str(parent_pid)}
        environment |= self.paid_clock.for_ranks() | {mirror_start.OWNER: self.mirror_owner}
        # Another launcher's variables (Kubeflow sets PET_NNODES) would act as torchrun's options.
        inherited = {name: value for name, value in os.environ.items() if name[:4] != "PET_"}
        inherited.pop("PYTHONSAFEPATH", None)  # the ranks find our modules beside the script
        if self.num_ranks > 1:  # what torchrun sets then by itself, with a warning
            inherited.setdefault("OMP_NUM_THREADS", "1")
        return subprocess.Popen(
            [*torchrun, *self.command],
            env=inherited | environment,
            start_new_session=True,
            preexec_fn=lambda: _prepare_torchrun(parent_pid),
        )

    def _watch(self, torchrun: subprocess.Popen, attempt: str) -> None:
        """Wait for torchrun; pass on a first signal, kill everything on another Ctrl-C or on a
        hang."""
        num_forwarded, last_beat = 0, heartbeat.read(self.run_dir)
        changed_s: float | None = None  # when this attempt last gave a sign of life
        while torchrun.poll() is None:
            self._sleep(POLL_S)
            beat = heartbeat.read(self.run_dir)
            # Importing, and listing a million files, may take any amount of time: the hang check
            # begins with the first heartbeat.
            if beat != last_beat:
                last_beat, changed_s = beat, time.monotonic()
            elif changed_s is not None and time.monotonic() - changed_s > self.hang_s:
                self._end_hung(torchrun)
            if self.wants_save:
                self.wants_save = False
                self._pass_on_save(torchrun, attempt)
            # Several signals may come at once: a Ctrl-C after another signal means "now".
            if self.num_signals > num_forwarded:
                num_forwarded = self.num_signals
                self._pass_on_stop(torchrun, attempt)

        self.paid_clock.write()

    def _sleep(self, seconds: float) -> None:
        """Wait, and keep the clock of the run meanwhile."""
        for _ in range(round(seconds / POLL_S)):
            self.paid_clock.keep()
            time.sleep(POLL_S)

    def _end_hung(self, torchrun: subprocess.Popen) -> None:
        """Have the ranks print where they are, if they still can, and kill everything."""
        _say(f"no step for {self.hang_s:g} s: ending this attempt; where it hangs:")
        _signal_ranks(torchrun.pid, signal.SIGUSR2)
        self._sleep(REPORT_S)
        _signal_ranks(torchrun.pid, signal.SIGKILL)
        torchrun.kill()

    def _pass_on_save(self, torchrun: subprocess.Popen, attempt: str) -> None:
        if status.state_of(self.run_dir, attempt):
            _say("saving after this step, then continuing")
            _signal_ranks(torchrun.pid, signal.SIGUSR1)
        else:
            _say("nothing to save yet: training has not begun")

    def _pass_on_stop(self, torchrun: subprocess.Popen, attempt: str) -> None:
        # A rank that has not begun to train has nothing to save and does not listen yet.
        # And whoever presses Ctrl-C twice wants out, not a save.
        if self.num_signals == 1 and status.state_of(self.run_dir, attempt):
            _say("saving and stopping after this step; another Ctrl-C stops at once")
            _signal_ranks(torchrun.pid, signal.SIGTERM)
        else:
            _say("stopping at once; the same command resumes where it last saved")
            _signal_ranks(torchrun.pid, signal.SIGKILL)
            torchrun.kill()


def _prepare_torchrun(parent_pid: int) -> None:
    """In the child, before it becomes torchrun: what is meant for the ranks must not end it.

    Slurm signals every process of a job. A SIGUSR1 would kill torchrun; on a SIGTERM, it would kill
    ranks that need more than 30 s to save, and print a traceback. The ranks inherit this, and
    ignore both signals until they install handlers.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    processes.die_with_parent(parent_pid)


def _signal_ranks(torchrun_pid: int, signum: signal.Signals) -> None:
    """Signal torchrun's children and not torchrun, which would report our own stop as a failure."""
    for pid in processes.children_of(torchrun_pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signum)


def _say(text: str) -> None:
    try:
        print(f"train.py: {text}", flush=True)
    except OSError:  # the terminal is gone
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the process's life)
