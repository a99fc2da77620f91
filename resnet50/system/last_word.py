"""End a log with a line of ours, after whatever torchrun prints as it ends.

    python last_word.py PID TEXT

Stopped by a signal, torchrun ends with a traceback, which looks like a crash. Its ranks are gone by
then, so a separate program waits for torchrun and then says what happened to the run.
"""

import os
import select
import subprocess
import sys
from contextlib import suppress

WAIT_S = 60  # torchrun waits 30 s for ranks that do not end; after this the line comes anyway


def say_after_launcher(text: str) -> None:
    """Called by a rank: say this on stderr once torchrun, the rank's parent, has ended."""
    # In its own session: a signal to torchrun's process group is meant for the training.
    subprocess.Popen(
        [sys.executable, "-S", __file__, str(os.getppid()), text],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def main(pid: int, text: str) -> None:
    """Wait for that process, then say it."""
    with suppress(ProcessLookupError):  # it has ended already
        # Unlike kill(pid, 0), this notices a process that has ended but was not reaped yet.
        select.select([os.pidfd_open(pid)], [], [], WAIT_S)
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
