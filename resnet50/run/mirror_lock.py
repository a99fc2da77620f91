"""One writer at a time in a mirror: lock.json there, with a beat every 10 s.

    owner     an id made by the start that holds it: the supervisor, or rank 0 of a torchrun
    host, boot_id, pid_namespace, pid, started    the process that lives as long as that start
    beat      how many times it was written

A process of this boot and this container that is gone is known to be dead: its lock is taken over
at once. Any other owner is dead when its beat is 60 s old, by the store's own clock. A lock is
taken with a conditional write, so that of two starts one wins, and an owner that was away for a
minute (a suspended machine, a cut cable) learns at its next beat that it has lost.

The ranks beat (mirror.py), and while none does, mirror_keeper.py.

A store without conditional writes is found out and warned of. There the lock is read before it is
written: two starts within one round trip of each other may both believe that they have it.
"""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from resnet50.system import processes
from resnet50.system.store import Store

LOCK = "lock.json"
BEAT_S = 10.0
DEAD_S = 60.0  # six beats: a store that is slow for a while costs nobody the lock
PATIENCE_S = 90.0
POLL_S = 2.0
RETRY_S = 0.2  # after a write that somebody else's came before
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
OURS = "ours"  # why a lock may be taken over without a word
# Of one that this start holds: another process of it may write in between.
ADOPT_TRIES = 3


class MirrorLock:
    """The lock of one store, for one start."""

    def __init__(self, store: Store, owner: str, pid: int) -> None:
        """owner: this start's id; pid: of the process that lives as long as it."""
        self.store, self.owner = store, owner
        self._version = ""
        self._record = {"owner": owner, **described(pid)}
        self._beats = 0

    def claim(self, say: Callable[[str], None]) -> None:
        """Take the lock, waiting for an owner that may be dead.

        Raises ValueError naming the owner if it is alive, and StoreError.
        """
        url, until_s, has_said = self.store.url, time.monotonic() + PATIENCE_S, False
        while not self._create():
            holder, version = self._read()
            is_late = time.monotonic() > until_s
            if not (version or is_late):
                time.sleep(RETRY_S)
                continue  # it was released meanwhile
            if reason := self._why_dead(holder):
                if self._replace(version):
                    if reason != OURS:
                        say(f"{url}: taken over from {name_of(holder)}, {reason}")
                    break
                if not is_late:
                    time.sleep(RETRY_S)
                    continue  # somebody was quicker, or it is alive after all
            if is_late:
                raise ValueError(
                    f"--mirror {url} is in use by {name_of(holder)}, which is alive: wait for it, "
                    "stop it, or give another --mirror"
                )
            if not has_said:
                has_said = True
                say(
                    f"{url} is in use by {name_of(holder)}: waiting up to {PATIENCE_S:.0f} s, and "
                    f"taking over if that gives no sign of life for {DEAD_S:.0f} s"
                )
            time.sleep(POLL_S)
        self.store.test_conditions(LOCK)
        if not self.store.is_conditional:
            say(
                f"warning: --mirror {url}: this store has no conditional writes: start only one "
                "run with it, since two starts at the same moment would not notice each other"
            )

    def adopt(self) -> bool:
        """Go on with the lock that an earlier process of this start took; False if it is taken."""
        for _ in range(ADOPT_TRIES):
            holder, version = self._read()
            if version and holder.get("owner") != self.owner:
                return False
            if self._replace(version) if version else self._create():
                return True
            # Somebody wrote in between: another start, or this one's own keeper.
        return False

    def beat(self) -> bool:
        """Show that the owner lives; False if somebody else has the lock."""
        # A version that is not the last one known: the answer to an earlier beat was lost.
        return (bool(self._version) and self._replace(self._version)) or self.adopt()

    def version_if_ours(self) -> str:
        """Of the lock, if this start holds it; else empty."""
        holder, version = self._read()
        return version if holder.get("owner") == self.owner else ""

    def renew(self, version: str) -> bool:
        """Beat, if the lock is still this version."""
        return self._replace(version)

    def is_ours(self) -> bool:
        """Whether nobody else has the lock."""
        holder, version = self._read()
        return not version or holder.get("owner") == self.owner

    def release(self) -> None:
        """Remove the lock, if it is still ours."""
        if self._read()[0].get("owner") == self.owner:
            self.store.delete(LOCK)

    def _create(self) -> bool:
        self._version = self.store.create(LOCK, self._bytes()) or ""
        return bool(self._version)

    def _replace(self, version: str) -> bool:
        self._version = self.store.replace(LOCK, self._bytes(), version) or ""
        return bool(self._version)

    def _bytes(self) -> bytes:
        self._beats += 1
        return json.dumps(self._record | {"beat": self._beats}).encode()

    def _read(self) -> tuple[dict[str, object], str]:
        """The lock's record and version; both empty without a lock."""
        found = self.store.get(LOCK)
        if found is None:
            return {}, ""
        try:
            record = json.loads(found[0])
        except ValueError:
            record = {}  # half of it, on a disk without links: judged by its age
        return record if isinstance(record, dict) else {}, found[1]

    def _why_dead(self, holder: dict[str, object]) -> str:
        """Why the lock may be taken over; empty if its owner may be alive."""
        if holder.get("owner") == self.owner:
            return OURS
        mine = described(os.getpid())
        # A machine that tells no boot id may be any other one.
        keys = ("boot_id", "pid_namespace")
        if mine["boot_id"] and all(holder.get(key) == mine[key] for key in keys):
            pid = holder.get("pid")
            # The number may belong to another process by now: the time of its start tells.
            started = processes.started(pid) if isinstance(pid, int) else 0
            if not started or started != holder.get("started"):
                return "which has ended"
        entry = self.store.entry(LOCK)
        if entry is None:
            return ""
        age_s = self.store.now(f"{LOCK}.{self.owner}") - entry.modified_s
        return f"which gave no sign of life for {age_s:.0f} s" if age_s >= DEAD_S else ""


def described(pid: int) -> dict[str, object]:
    """A process, so that others can tell whether it lives.

    Containers of one machine share its boot id, but number their processes apart: the namespace
    tells whether a number means the same process here.
    """
    try:
        boot_id = BOOT_ID.read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (the text of the link)
    except OSError:
        boot_id = namespace = ""
    return {
        "host": socket.gethostname(),
        "boot_id": boot_id,
        "pid_namespace": namespace,
        "pid": pid,
        "started": processes.started(pid),
    }


def name_of(holder: dict[str, object]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"
