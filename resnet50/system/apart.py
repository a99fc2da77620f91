"""Work done in a process of its own, so that no thread that it starts stays in this one.

A process with threads must not be forked, and the loaders are; the client of a bucket has threads.
"""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection

from resnet50.system import processes
from resnet50.system.interruption import Interrupted
from resnet50.system.store import StoreError

POLL_S = 0.1
SAID, DONE, WRONG, AWAY, FAILED = "said", "done", "wrong", "away", "failed"
Say = Callable[[str], None]


def run_apart(work: Callable[[Say], bool], say: Say, should_stop: Callable[[], bool]) -> bool:
    """What work(say) returns; `say` is called here.

    Raises its ValueError or StoreError, a passing StoreError if it is killed, RuntimeError if it
    ends otherwise, and Interrupted, having ended it, when should_stop() turns true.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(sender, os.getpid(), work))
    child.start()
    sender.close()
    try:
        return _outcome(receiver, say, should_stop)
    except EOFError:
        reason = "the process that works with it was killed, perhaps for lack of memory"
        raise StoreError("--mirror", reason, is_passing=True) from None
    finally:
        child.kill()
        child.join()


def _outcome(receiver: Connection, say: Say, should_stop: Callable[[], bool]) -> bool:
    """What the child sends at its end, as a value or as an error."""
    kind, value = SAID, None
    while kind == SAID:
        while not receiver.poll(POLL_S):
            if should_stop():
                raise Interrupted
        kind, value = receiver.recv()
        if kind == SAID:
            say(value)
    if kind == WRONG:
        raise ValueError(value)
    if kind == AWAY:
        raise StoreError(*value, is_passing=True)
    if kind == FAILED:
        raise RuntimeError(value)
    return value


def _work(sender: Connection, parent_pid: int, work: Callable[[Say], bool]) -> None:
    processes.ignore_signals()
    processes.die_with_parent(parent_pid)
    try:
        sender.send((DONE, work(lambda text: sender.send((SAID, text)))))
    except StoreError as error:
        away = AWAY, (error.place, error.reason)
        sender.send(away if error.is_passing else (WRONG, str(error)))
    except ValueError as error:
        sender.send((WRONG, str(error)))
    except BaseException as error:
        sender.send((FAILED, f"{type(error).__name__}: {error}"))
