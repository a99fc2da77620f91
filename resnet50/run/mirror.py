"""--mirror: each finished checkpoint is copied to a place that outlives this machine.

    python train.py --mirror s3://my-bucket/runs/imagenet    # or a folder: /mnt/nfs/imagenet

Two threads of rank 0: one copies, one shows that this writer lives (mirror_lock.py). Training never
waits for them, and until its end they leave the CPU to it (system/paced_file.py). They begin after
the loaders were forked, since obstore has threads of its own.

The order of copying: the small files, the checkpoint, the pointer (mirror_manifest.py), and then
old checkpoints are removed. So at any moment, what the pointer names is there and whole. While a
copy takes longer than the time between two checkpoints, those in between are passed over.

What goes wrong is said once and tried again after growing pauses. If another start has taken the
lock, this one stops copying and trains on: its folder still has everything.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NoReturn

from resnet50.records import checkpoint, ownership, run_folder
from resnet50.records.log import RunLog
from resnet50.run import mirror_manifest
from resnet50.run.mirror_lock import BEAT_S, LOCK, MirrorLock
from resnet50.run.mirror_manifest import COPY_NAME, POINTER, SMALL_FILES, Copy, Manifest
from resnet50.system.paced_file import PacedFile
from resnet50.system.store import Store, StoreError, open_store

OPTION = "--mirror"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
# How long the end of a run waits for its last files. A spot machine is gone after 30 s (Google
# Cloud) or 120 s (EC2), and torchrun ends its ranks 30 s after a signal.
STOPPED_S, ENDED_S = 25.0, 600.0


class TakenError(Exception):
    """Another start writes there now."""


class Mirror:
    """Copies one run from its folder to a store."""

    def __init__(
        self,
        url: str,
        run_dir: Path,
        *,
        owner: str,
        pid: int,
        keep: int,
        data: dict[str, object],
        store: Store | None = None,
    ) -> None:
        """owner, pid: of the start that claimed the lock (mirror_start.py); keep: newest
        checkpoints there; data: fingerprints of both splits."""
        self.url, self._run_dir, self._keep = url, run_dir, keep
        self._run, self._data, self._commit = run_folder.read_id(run_dir), data, run_folder.commit()
        self._owner, self._pid = owner, pid
        self._store = store or open_store(url, OPTION)
        self._manifest, self._version = Manifest("", ""), ""
        self._small: dict[str, tuple[int, int]] = {}  # what was copied: time and size, by name
        # From the loop and the thread that writes checkpoints.
        self._step, self._best_step = -1, -1
        self._behind_since_s: float | None = None
        self._messages: deque[str] = deque()
        self._wake, self._idle = threading.Event(), threading.Event()
        self._hurry, self._end = threading.Event(), threading.Event()
        self._mutex = threading.Lock()  # of the two events above: what is new, and all is done
        self._threads: list[threading.Thread] = []
        self._is_taken, self._complaint = False, ""
        self._is_tested = False  # whether the store's conditional writes are known to work or not

    def start(self, step: int, best_step: int) -> None:
        """Start copying. step: of the newest checkpoint in the folder, -1 without one."""
        self._step, self._best_step = step, best_step
        self._wake.set()
        # Daemons: a run that ends otherwise than by `finish` must not wait for a server.
        for work in (self._copy_for_ever, self._beat_for_ever):
            self._threads.append(threading.Thread(target=work, name="mirror", daemon=True))
            self._threads[-1].start()

    def note(self, step: int, is_best: bool) -> None:
        """Tell it of a finished checkpoint; from any thread, returns at once."""
        if is_best:
            self._best_step = step
        self._step = step
        if self._behind_since_s is None:
            self._behind_since_s = time.monotonic()
        self._ask()

    def _ask(self) -> None:
        """Have everything looked through once more."""
        with self._mutex:
            self._idle.clear()
            self._wake.set()

    def report(self, log: RunLog, step: int) -> None:
        """Log what there is to say; returns at once."""
        while self._messages:
            log.event(step, self._messages.popleft())

    def status(self) -> dict[str, object]:
        """For status.json: the step that is safe there, and for how long a newer one is not."""
        return {"mirrored_step": self._manifest.step, "mirror_behind_s": round(self._behind_s())}

    def finish(self, limit_s: Callable[[], float], beat: Callable[[], None]) -> bool:
        """Copy what is left, within so many seconds; returns whether the store has everything.

        limit_s: seconds from now on, asked again and again: a signal may shorten the wait.
        beat: called while waiting. Removes the lock, so that the next start need not wait.
        """
        self._hurry.set()
        self._ask()
        until_s = time.monotonic() + limit_s()
        while not (self._is_taken or self._idle.wait(0.1)) and time.monotonic() < until_s:
            beat()
            until_s = min(until_s, time.monotonic() + limit_s())
        self._end.set()
        self._wake.set()
        if self._is_taken or not self._idle.is_set():
            return self._is_taken
        for thread in self._threads:
            thread.join(BEAT_S)  # a beat under way would make the lock again
        with suppress(StoreError):  # it counts as dead in a minute by itself
            self._lock(self._store).release()
        return True

    def standing(self) -> str:
        """What the store lacks, in words; empty if it lacks nothing."""
        if self._is_taken or self._idle.is_set():
            return ""
        has = f"step {self._manifest.step}" if self._manifest.copies else "no checkpoint"
        return f"{self.url} has {has} of {self._step}"

    def _behind_s(self) -> float:
        since_s = self._behind_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def _lock(self, store: Store) -> MirrorLock:
        return MirrorLock(store, self._owner, self._pid)

    def _beat_for_ever(self) -> None:
        lock = self._lock(self._store)
        while not self._end.is_set() and not self._is_taken:
            # `adopt` reads whose it is before it writes: until it is known that the store heeds the
            # condition of a write, a beat might take the lock from another start.
            is_tested, lock.store = self._is_tested, self._store
            try:
                if not (lock.beat() if is_tested else lock.adopt()):
                    self._stop_copying()
                elif self._version:  # no file before the pointer
                    self._copy_small_file(ownership.PAID)  # a lost machine's time was paid, too
            except Exception:  # the other thread says what is wrong
                self._end.wait(FIRST_PAUSE_S)
            self._end.wait(BEAT_S)

    def _stop_copying(self) -> None:
        if not self._is_taken:
            self._is_taken = True
            self._messages.append(
                f"warning: another start has taken over {self.url}: nothing more is copied there, "
                "training goes on in its own folder"
            )
        self._idle.set()
        self._wake.set()

    def _copy_for_ever(self) -> None:
        pause_s, has_read = FIRST_PAUSE_S, False
        while not self._end.is_set() and not self._is_taken:
            self._wake.wait()
            self._wake.clear()
            if self._end.is_set():
                return
            try:
                if not has_read:
                    self._begin()
                    has_read = True
                self._copy_all()
            except TakenError:
                self._stop_copying()
                return
            except Exception as error:  # whatever goes wrong here must not affect training
                self._complain(error)
                self._rest(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                self._reopen()
                self._wake.set()
                continue
            pause_s = FIRST_PAUSE_S
            self._say_recovered()

    def _rest(self, pause_s: float) -> None:
        """A server that is overloaded gets its pause, whatever checkpoints come; but the end of the
        run must not wait for a long one."""
        if self._hurry.wait(pause_s):
            self._end.wait(FIRST_PAUSE_S)

    def _complain(self, error: Exception) -> None:
        """Once for each thing that is wrong."""
        is_known = isinstance(error, StoreError | ValueError)
        text = str(error) if is_known else f"{type(error).__name__}: {error}"
        complaint = getattr(error, "trouble", text)
        if complaint == self._complaint:
            return
        self._complaint = complaint
        has = f"step {self._manifest.step}" if self._manifest.copies else "no checkpoint"
        self._messages.append(
            f"warning: --mirror: {text}; the copy there has {has} and is "
            f"{self._behind_s() / 60:.0f} minutes behind; training goes on, and this is tried again"
        )

    def _say_recovered(self) -> None:
        if self._complaint:
            self._complaint = ""
            self._messages.append(f"{self.url} has caught up: step {self._manifest.step}")

    def _reopen(self) -> None:
        """With credentials that may have been renewed meanwhile."""
        try:
            store = open_store(self.url, OPTION)
        except ValueError as error:
            self._complain(error)
            return
        store.is_conditional = self._store.is_conditional
        self._store = store

    def _begin(self) -> None:
        """Read the pointer, or make the first one. Raises TakenError if it is another run's."""
        if not self._lock(self._store).is_ours():
            raise TakenError
        self._store.test_conditions(LOCK)  # the start did so in another process
        self._is_tested = True
        self._small.clear()  # another writer may have replaced or removed them
        found, self._version = mirror_manifest.read(self._store)
        if found is not None and found.run == self._run:
            self._manifest = found
            return
        if found is not None and found.copies:
            raise TakenError
        # Before any other file: a prefix that has files and no pointer is somebody else's.
        self._write_pointer(Manifest(self._run, self._commit, self._data))

    def _copy_all(self) -> None:
        """Copy what is new. Sets `_idle` if nothing more came meanwhile."""
        step, best_step = self._step, self._best_step
        self._copy_small_files()
        copies = list(self._manifest.copies)
        # A later step may be there: the newest file here was damaged, and this one is before it.
        wanted = {best_step, step} if step > self._manifest.step else {best_step}
        lacking = wanted - {-1, *(copy.step for copy in copies)}
        copies += filter(None, map(self._copy_checkpoint, sorted(lacking)))
        manifest = Manifest(
            self._run,
            self._commit,
            self._data,
            mirror_manifest.pruned(copies, self._keep, best_step),
            best_step,
        )
        if manifest != self._manifest:
            # Read once more: a machine that was suspended finds out here, before its next beat.
            if not self._lock(self._store).is_ours():
                raise TakenError
            self._write_pointer(manifest)
            self._remove_old()
        if step != self._step:
            self._wake.set()
        elif step > self._manifest.step:
            folder = run_folder.checkpoints_dir(self._run_dir)
            raise ValueError(f"the checkpoint of step {step} is not in {folder} any more")
        else:
            with self._mutex:
                if not self._wake.is_set():
                    self._behind_since_s = None
                    self._idle.set()

    def _copy_checkpoint(self, step: int) -> Copy | None:
        """Copy one checkpoint; None if it is not in the run's folder any more."""
        folder = run_folder.checkpoints_dir(self._run_dir)
        best = folder / checkpoint.BEST
        paths = [checkpoint.step_path(folder, step)]
        if step == self._best_step:
            paths.append(best)
        for path in paths:
            try:
                # An open file stays readable when the writer prunes it.
                with open(path, "rb") as file:
                    # A better one may have replaced it meanwhile, before or after it was opened.
                    if path != best or _step_of(best) == step:
                        return self._put_checkpoint(step, file)
            except FileNotFoundError:
                continue
        return None

    def _put_checkpoint(self, step: int, file: BinaryIO) -> Copy:
        num_bytes, sha256 = checkpoint.size_and_sha256(file)
        copy = Copy(step, mirror_manifest.name_of(step, sha256), num_bytes, sha256)
        there = self._store.entry(copy.name)
        # Whole if it is there at all: an attempt before this one was ended after it.
        if there is None or there.num_bytes != num_bytes:
            self._store.put_file(copy.name, PacedFile(file, self._hurry))
        return copy

    def _copy_small_files(self) -> None:
        events = sorted(self._run_dir.glob(f"tensorboard/{ownership.EVENTS}"))
        names = [*SMALL_FILES, *(path.relative_to(self._run_dir).as_posix() for path in events)]
        for name in names:
            self._copy_small_file(name)

    def _copy_small_file(self, name: str) -> None:
        """Copy it if it has changed."""
        try:
            stat = (self._run_dir / name).stat()
            data = (self._run_dir / name).read_bytes()
        except OSError:
            return  # not there, or not now
        seen = stat.st_mtime_ns, stat.st_size
        if self._small.get(name) != seen:
            self._store.put(name, data)
            self._small[name] = seen

    def _write_pointer(self, manifest: Manifest) -> None:
        """Raises TakenError if it was changed by another writer."""
        data = manifest.to_bytes()
        if self._version:
            version = self._store.replace(POINTER, data, self._version)
        else:
            version = self._store.create(POINTER, data)
        if version is None:
            # Unless it was this very write, whose answer was lost.
            found = self._store.get(POINTER)
            if found is None or found[0] != data:
                self._begin_again()
            version = found[1]
        self._version, self._manifest = version, manifest

    def _begin_again(self) -> NoReturn:
        """Somebody else wrote the pointer: one who has the lock, or one who has lost it to us."""
        if not self._lock(self._store).is_ours():
            raise TakenError
        is_gone = self._store.get(POINTER) is None
        self._begin()
        late = "a start that has lost this place wrote there once more"
        reason = "its files are gone: copying all again" if is_gone else late
        raise StoreError(self.url, reason, is_passing=True)

    def _remove_old(self) -> None:
        kept = {copy.name for copy in self._manifest.copies}
        for name in self._store.list(ownership.CHECKPOINTS):
            if COPY_NAME.fullmatch(name) and name not in kept:
                self._store.delete(name)


def _step_of(path: Path) -> object:
    """The step of a checkpoint; None if it is damaged or not there."""
    try:
        checkpoint.verify(path)
        return checkpoint.read_value(path, "step")
    except (checkpoint.DamagedCheckpointError, FileNotFoundError):
        return None
