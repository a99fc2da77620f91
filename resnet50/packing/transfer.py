"""Ranges of a file, several at a time, from a place that may be slow, stop answering, or lie.

    for event in Transfer(source, "train.pack", partial, check).run(ranges): ...

The threads write straight into the file and check each range where it lies. What fails is tried
again with growing pauses, until nothing has come for a while; what comes but fails its checksums
is fetched once more, since a second time the fault is not the network's.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from resnet50.data.pack import DamagedPackError
from resnet50.packing.pack_sources import PackSource, UnreachableError
from resnet50.packing.ranges import Range

PAUSES_S = (0.5, 1, 2, 4, 8, 15)  # between tries; the last one again and again
Answer = TypeVar("Answer")
TICK_S = 0.5  # how often the caller hears something, at the least


def patiently(ask: Callable[[], Answer], give_up_s: float) -> Answer:
    """What a question to a place returns, asked again for so long if there is no answer.

    Raises UnreachableError of the last try, and whatever else `ask` raises.
    """
    begin_s, num_tries = time.monotonic(), 0
    while True:
        try:
            return ask()
        except UnreachableError:
            if time.monotonic() - begin_s > give_up_s:
                raise
        time.sleep(PAUSES_S[min(num_tries, len(PAUSES_S) - 1)])
        num_tries += 1


class Event(NamedTuple):
    """What happened: bytes that came, a range that is whole, or words for the user.

    was_there: the range was fetched by an earlier start.
    """

    num_bytes: int = 0
    done: Range | None = None
    was_there: bool = False
    text: str = ""


class Stopped(Exception):  # noqa: N818 (not an error)
    """The caller wants no more."""


class Transfer:
    """Fetches ranges of one file, num_parallel at a time, in threads that end with the program.

    place: the file, at its full length already; check: says what is wrong with a range that lies
    there, None if nothing is; silence_s: seconds without a byte after which it gives up.
    """

    def __init__(
        self,
        source: PackSource,
        name: str,
        place: Path,
        check: Callable[[Range], str | None],
        *,
        num_parallel: int,
        silence_s: float,
    ) -> None:
        self._source, self._name, self._check = source, name, check
        self._url = source.url_of(name)
        self._place, self._silence_s = place, silence_s
        self._num_parallel = num_parallel
        self._events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._heard_s = time.monotonic()
        self._complaint_s = 0.0

    def run(
        self, ranges: Sequence[Range], there: Collection[tuple[int, int]] = ()
    ) -> Iterator[Event]:
        """What happens until all ranges are there, or an empty event each TICK_S if nothing does.

        there: start and end of those that an earlier start has fetched; they are checked, and
        fetched if they are not whole. Raises UnreachableError, ValueError for damage and for what
        asking again does not change, and OSError of the disk. Closing it stops the threads.
        """
        waiting = iter([(item, (item.start, item.end) in there) for item in ranges])
        file = os.open(self._place, os.O_WRONLY | os.O_CLOEXEC)
        num_threads = min(self._num_parallel, max(1, len(ranges)))
        threads = [
            threading.Thread(target=self._work, args=(file, waiting), daemon=True)
            for _ in range(num_threads)
        ]
        for thread in threads:
            thread.start()
        num_ended = 0
        try:
            while num_ended < num_threads:
                try:
                    event = self._events.get(timeout=TICK_S)
                except queue.Empty:
                    event = Event()
                if isinstance(event, BaseException):
                    raise event
                if event is None:
                    num_ended += 1
                else:
                    yield event
        finally:
            self._stop.set()
            # A thread that waits for a dead server keeps the descriptor; it writes no more.
            if num_ended == num_threads:
                os.close(file)

    def _work(self, file: int, waiting: Iterator[tuple[Range, bool]]) -> None:
        try:
            with suppress(Stopped):  # whoever has stopped this thread knows why
                self._fetch_waiting(file, waiting)
        except BaseException as error:  # the caller's thread raises it
            self._events.put(error)
        self._events.put(None)

    def _fetch_waiting(self, file: int, waiting: Iterator[tuple[Range, bool]]) -> None:
        """Take one range after another, as the other threads do. Raises what `_fetch` does."""
        while not self._stop.is_set():
            with self._lock:
                item, is_there = next(waiting, (None, False))
            if item is None:
                return
            is_there = is_there and self._check(item) is None
            if not is_there:
                self._fetch(file, item)
            self._events.put(Event(done=item, was_there=is_there))

    def _fetch(self, file: int, item: Range) -> None:
        """Fetch a range until it is whole. Raises what `run` does, or Stopped."""
        self._heard_s = time.monotonic()  # comparing what was there takes its time
        self._fetch_once(file, item)
        if damage := self._check(item):
            self._say(f"{self._url}: {damage}; fetching it again")
            self._fetch_once(file, item)
            if damage := self._check(item):
                raise DamagedPackError(
                    f"{self._url}: {damage}, twice: the file there is damaged. Copy it there "
                    "again, or pack again (prepare_data.py)"
                )

    def _fetch_once(self, file: int, item: Range) -> None:
        """Try until all bytes are there, from where they ended each time."""
        at, num_tries = item.start, 0
        while at < item.end:
            try:
                for part in self._source.read(self._name, at, item.end):
                    if self._stop.is_set():
                        raise Stopped
                    at += self._write(file, part[: item.end - at], at)
                    num_tries = 0
                if at < item.end:
                    raise UnreachableError(f"{self._url}: the connection ended early")
            except UnreachableError as error:
                silent_s = time.monotonic() - self._heard_s
                if silent_s > self._silence_s:
                    what = f"{error}; nothing has come for {silent_s:.0f} s"
                    raise UnreachableError(what) from error
                self._say(f"{error}; trying again")
                pause_s = PAUSES_S[min(num_tries, len(PAUSES_S) - 1)]
                num_tries += 1
                if self._stop.wait(pause_s):
                    raise Stopped from None

    def _write(self, file: int, part: bytes, at: int) -> int:
        """Write a part to its place; returns its bytes."""
        rest = memoryview(part)
        while rest:
            rest = rest[os.pwrite(file, rest, at + len(part) - len(rest)) :]
        self._heard_s = time.monotonic()
        self._events.put(Event(num_bytes=len(part)))
        return len(part)

    def _say(self, text: str) -> None:
        """A line for the user, but not sixteen at once."""
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._complaint_s < 10 and self._complaint_s:
                return
            self._complaint_s = now_s
        self._events.put(Event(text=text))
