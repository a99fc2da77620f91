"""What `python train.py` is: torchrun with restarts, forwarded signals and a true exit code.

torchrun ends with 1 whatever a rank ended with, so the outcome is read from the run's status.json,
which carries this attempt's id. A crash is restarted from the newest checkpoint as long as
checkpoints advance; a crash that repeats itself is not. SIGUSR1 has the ranks save and go on.

Exit codes: 0 done, 1 crashed, 2 the user must change something, 3 diverged, 75 interrupted and
resumable.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import interruption

ATTEMPT = "TRAIN_ATTEMPT"  # environment variable: the id that status.json then carries
POLL_S = 0.1
TELL_S = 2.0  # for the ranks to tell where they hang
INTERRUPTED_CODE = 75


class Supervisor:
    """Runs one command under torchrun until its run has an outcome."""

    def __init__(
        self,
        command: Sequence[str],
        num_ranks: int,
        *,
        read_status: Callable[[], Mapping[str, object]],
        newest_step: Callable[[], int],
        heartbeat: Callable[[], tuple[int, int]],
        hang_s: float,
        exit_codes: Mapping[str, int],
    ) -> None:
        """newest_step: of the checkpoints; heartbeat: changes as the run gets on, and its step;
        hang_s: seconds that it may stay as it is, once it has changed."""
        self.command, self.num_ranks = list(command), num_ranks
        self.read_status, self.newest_step, self.exit_codes = read_status, newest_step, exit_codes
        self.heartbeat, self.hang_s = heartbeat, hang_s
        self.num_signals = 0  # that ask to stop
        self.wants_save = False

    def run(self) -> int:
        """Train to the end, restarting crashes that got further; returns the exit code."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_save)
        # A dropped SSH connection hangs up on us; training goes on, and the same command comes
        # back.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        reached = self.newest_step()
        while True:
            attempt, beat = uuid.uuid4().hex, self.heartbeat()
            self._watch(self._start(attempt), attempt)
            state = self._state_of(attempt)
            if state in self.exit_codes:
                return self.exit_codes[state]
            if self.num_signals:
                return INTERRUPTED_CODE
            before, reached = reached, max(reached, self._step_since(beat), self.newest_step())
            if reached <= before:
                _say("training crashed without getting any further: not restarting")
                return 1
            _say(f"training crashed; restarting from step {max(self.newest_step(), 0)}")

    def _step_since(self, beat: tuple[int, int]) -> int:
        """The step that an attempt came to; -1 if it did not come to any."""
        return self.heartbeat()[1] if self.heartbeat() != beat else -1

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.num_signals += 1

    def _on_save(self, signum: int, frame: FrameType | None) -> None:
        self.wants_save = True

    def _state_of(self, attempt: str) -> str:
        """State that this attempt wrote; empty if it wrote none."""
        status = self.read_status()
        return str(status.get("state", "")) if status.get("attempt") == attempt else ""

    def _start(self, attempt: str) -> subprocess.Popen:
        """torchrun in a session of its own, so that Ctrl-C comes to us alone and arrives once."""
        parent_pid = os.getpid()
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        torchrun += ["--max-restarts=0", f"--nproc_per_node={self.num_ranks}"]
        # Not SIGHUP: torchrun would take it up again and end the job when a connection drops.
        torchrun += ["--signals-to-handle=SIGTERM,SIGINT,SIGQUIT"]
        environment = {ATTEMPT: attempt, interruption.SUPERVISOR_PID: str(parent_pid)}
        return subprocess.Popen(
            [*torchrun, *self.command],
            env=os.environ | environment,
            start_new_session=True,
            preexec_fn=lambda: _prepare_torchrun(parent_pid),
        )

    def _watch(self, torchrun: subprocess.Popen, attempt: str) -> None:
        """Wait for torchrun; pass on a first signal politely, kill everything on a second, and what
        hangs too."""
        forwarded, beat, has_begun, changed_s = 0, self.heartbeat(), False, 0.0
        while torchrun.poll() is None:
            time.sleep(POLL_S)
            if beat != (beat := self.heartbeat()):
                has_begun, changed_s = True, time.monotonic()
            elif has_begun and time.monotonic() - changed_s > self.hang_s:
                _end_hung(torchrun, self.hang_s)
            if self.wants_save:
                self.wants_save = False
                self._pass_on_save(torchrun, attempt)
            if self.num_signals == forwarded:
                continue
            forwarded = self.num_signals
            # A rank that has not begun to train has nothing to save and does not listen yet.
            if self._state_of(attempt) and forwarded == 1:
                _say("stopping after this step, saving first; once more to stop at once")
                _signal_ranks(torchrun.pid, signal.SIGTERM)
            else:
                _say("stopping at once; the same command starts again where it last saved")
                _signal_ranks(torchrun.pid, signal.SIGKILL)
                torchrun.kill()

    def _pass_on_save(self, torchrun: subprocess.Popen, attempt: str) -> None:
        if self._state_of(attempt):
            _say("saving after this step, and going on")
            _signal_ranks(torchrun.pid, signal.SIGUSR1)
        else:
            _say("nothing to save yet: training has not begun")


def _prepare_torchrun(parent_pid: int) -> None:
    """In the child, before it becomes torchrun, which a SIGUSR1 to everybody would otherwise kill.

    The ranks inherit that, and ignore SIGUSR1 until they listen to it.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    interruption.die_with_parent(parent_pid)


def _signal_ranks(torchrun_pid: int, signum: signal.Signals) -> None:
    """Signal torchrun's children and not torchrun, which would report our own stop as a failure."""
    for children in Path(f"/proc/{torchrun_pid}/task").glob("*/children"):
        for pid in children.read_text().split():
            try:
                os.kill(int(pid), signum)
            except ProcessLookupError:
                continue


def _end_hung(torchrun: subprocess.Popen, hang_s: float) -> None:
    """Have the ranks print where they are, if they still can, and kill everything."""
    _say(f"no step for {hang_s:g} s: ending this attempt; where it hangs:")
    _signal_ranks(torchrun.pid, signal.SIGUSR2)
    time.sleep(TELL_S)
    _signal_ranks(torchrun.pid, signal.SIGKILL)
    torchrun.kill()


def _say(text: str) -> None:
    try:
        print(f"train.py: {text}", flush=True)
    except OSError:  # the terminal is gone
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the process's life)
