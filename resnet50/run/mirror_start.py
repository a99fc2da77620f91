"""Before a run with --mirror begins: its place is taken, checked, and an empty folder filled.

In this order, so that nothing is written before all of it is known to fit:

1. The lock there is taken, or waited for (mirror_lock.py).
2. What is there must be this run, or nothing. For an empty run folder it becomes this run, if the
   settings given and the data are its own.
3. If the folder lacks the newest checkpoint there, the small files and that checkpoint are copied
   here, the checkpoint last: killed before it is whole, the next start begins again.

All this is done in a process of its own (system/apart.py), by the supervisor, or by rank 0 of a
torchrun that was started by hand.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from resnet50.config.train_config import NO_MIRROR, TrainConfig
from resnet50.config.train_flags import Request
from resnet50.data.splits import fingerprint, open_dataset
from resnet50.records import checkpoint, ownership, run_folder, status
from resnet50.records.ownership import CONFIG
from resnet50.run import mirror_keeper, mirror_manifest
from resnet50.run.mirror_lock import LOCK, PATIENCE_S, MirrorLock
from resnet50.run.mirror_manifest import POINTER, SMALL_FILES, Copy, Manifest
from resnet50.run.resolve import not_planned, resumed, stored_config
from resnet50.system import apart, files
from resnet50.system.apart import Say
from resnet50.system.folder_store import GUARD
from resnet50.system.interruption import Interrupted
from resnet50.system.store import Store, StoreError, open_store

OPTION = "--mirror"
# Environment variable from the supervisor to its ranks: the id with which it has taken the lock.
OWNER = "TRAIN_MIRROR_OWNER"
BLOCK_BYTES = 8 << 20
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0
RELEASE_S = 5.0
T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """A start of a run with a mirror."""

    cfg: TrainConfig  # as if the folder here were all there is
    request: Request
    owner: str  # an id of this start
    pid: int  # of the process that lives as long as it

    @property
    def run_dir(self) -> Path:
        return Path(self.cfg.run_dir)


def new_owner() -> str:
    """An id of a start, with which it holds the lock."""
    return os.urandom(16).hex()


def prepare(
    cfg: TrainConfig,
    request: Request,
    owner: str,
    say: Say,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Do all of the above, if there is a mirror; returns whether the run's folder has changed.

    To be called by the process that lives as long as this start does. Raises ValueError naming what
    must be changed, StoreError if the place cannot be reached for a minute and a half, and
    Interrupted.
    """
    if cfg.mirror == NO_MIRROR:
        return False
    start = Start(cfg, request, owner, os.getpid())
    mirror_keeper.keep(cfg.mirror, OPTION, owner)
    try:
        return apart.run_apart(lambda say: _prepare(start, say), say, should_stop)
    except BaseException:
        mirror_keeper.stop()
        raise


def release(cfg: TrainConfig, owner: str) -> None:
    """Free the mirror for other machines, if this start has its lock; within a few seconds, since
    elsewhere it counts as dead in a minute by itself."""
    if cfg.mirror == NO_MIRROR:
        return
    until_s = time.monotonic() + RELEASE_S

    def free(say: Say) -> bool:
        MirrorLock(open_store(cfg.mirror, OPTION), owner, os.getpid()).release()
        return True

    with suppress(ValueError, OSError, RuntimeError, Interrupted):
        apart.run_apart(free, lambda text: None, lambda: time.monotonic() > until_s)


def state_after(error: Exception) -> str:
    """The state (records/status.py) of a start that ended with this error."""
    is_passing = isinstance(error, StoreError) and error.is_passing
    return status.INTERRUPTED if is_passing else status.CONFIG_ERROR


def check_place(cfg: TrainConfig) -> None:
    """Raise ValueError, before anything is written, if mirror and run folder overlap."""
    url, run_dir = cfg.mirror, Path(cfg.run_dir)
    if url == NO_MIRROR or "://" in url:
        return
    there, here = Path(url).resolve(), run_dir.resolve()
    if there == here or there in here.parents or here in there.parents:
        raise ValueError(
            f"--mirror {url} and --run_dir {run_dir} lie within each other: give a folder on "
            f"another disk, or s3://BUCKET/PREFIX, or --mirror {NO_MIRROR}"
        )


def is_on_same_disk(cfg: TrainConfig) -> bool:
    """Whether the mirror is a folder on the run folder's disk, as when its own is not mounted."""
    if "://" in cfg.mirror:
        return False
    places = (Path(cfg.mirror).resolve(), Path(cfg.run_dir).resolve())
    there, here = (next(p for p in (place, *place.parents) if p.exists()) for place in places)
    return there.stat().st_dev == here.stat().st_dev


def _prepare(start: Start, say: Say) -> bool:
    store = open_store(start.cfg.mirror, OPTION)
    if is_on_same_disk(start.cfg):
        say(
            f"warning: --mirror {store.url} lies on the same disk as --run_dir {start.run_dir}, "
            "and is lost with it"
        )
    lock = MirrorLock(store, start.owner, start.pid)
    _patiently(lambda: lock.claim(say), say)
    try:
        return _patiently(lambda: _fill(store, start, say), say)
    except BaseException as error:
        with suppress(StoreError):
            lock.release()
        if isinstance(error, OSError) and not isinstance(error, StoreError):
            raise ValueError(
                f"--run_dir {start.run_dir}: {error}, while the run in --mirror {store.url} was "
                "copied here: is the disk full, or read-only?"
            ) from error
        raise


def _patiently(ask: Callable[[], T], say: Say) -> T:
    """What ask() returns; asked again while a server is away or overloaded, for a while."""
    until_s, pause_s = None, FIRST_PAUSE_S
    while True:
        try:
            return ask()
        except StoreError as error:
            now_s = time.monotonic()
            # From its first failure on: before that it may have copied for an hour.
            until_s = now_s + PATIENCE_S if until_s is None else until_s
            if not error.is_passing or now_s > until_s:
                raise
            if pause_s == FIRST_PAUSE_S:
                say(f"warning: --mirror: {error}: trying for {PATIENCE_S:.0f} s")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _fill(store: Store, start: Start, say: Say) -> bool:
    """Compare what is there with what is here, and copy from there what is missing here."""
    manifest, _ = mirror_manifest.read(store)
    if manifest is None:
        refuse_foreign(store)
        return False
    manifest = mirror_manifest.with_unnamed(store, manifest)
    if not manifest.copies:
        return False  # a start that ended before its first checkpoint: nothing is lost
    if start.request.fresh:
        raise ValueError(
            f"--fresh starts another run, and --mirror {store.url} holds one, at step "
            f"{manifest.step}: give another --mirror, or leave --fresh out"
        )
    here = run_folder.read_id(start.run_dir)
    if ownership.has_run(start.run_dir):
        if here != manifest.run:
            raise ValueError(
                f"--mirror {store.url} holds another run (id {manifest.run[:8]}, at step "
                f"{manifest.step}) than --run_dir {start.run_dir} ({described_id(here)}): give "
                "another --mirror, or an empty --run_dir to go on with the run there"
            )
        folder = run_folder.checkpoints_dir(start.run_dir)
        if checkpoint.newest_step(folder) >= manifest.step:
            return False
    else:
        cfg = check_settings(store, manifest, start)
        check_data(store, manifest, cfg)
    restore(store, manifest, start.run_dir, say)
    return True


def described_id(run: str) -> str:
    return f"id {run[:8]}" if run else f"whose {CONFIG} names no id"


def refuse_foreign(store: Store) -> None:
    """Raise ValueError if a place without a pointer has files of others."""
    # What a start leaves that is killed before it has written the pointer.
    ours = (LOCK, GUARD, f"{POINTER}.")
    names = (name for name in store.list(limit=20) if not name.startswith(ours))
    if name := next(names, ""):
        raise ValueError(
            f"--mirror {store.url} has other files, such as {name}, and no run: give an empty "
            "place, or a new one"
        )


def check_settings(store: Store, manifest: Manifest, start: Start) -> TrainConfig:
    """The settings with which the run there goes on here. Raises ValueError if it cannot."""
    found = store.get(CONFIG)
    try:
        config = json.loads(found[0]) if found else {}
        settings, budget = config["settings"], config.get("budget") or {}
    except (ValueError, KeyError, TypeError, AttributeError):
        settings = budget = None
    if not isinstance(settings, dict) or not isinstance(budget, dict):
        raise StoreError(f"{store.url}/{CONFIG}", "it has no settings", is_passing=False)
    try:
        stored = stored_config(settings, str(start.run_dir))
    except ValueError as error:
        raise ValueError(
            f"--mirror {store.url} holds a run of another version of this program (commit "
            f"{manifest.commit[:12] or 'unknown'}; here {run_folder.commit()[:12] or 'unknown'}): "
            f"{error}. Update this one, or give another --mirror"
        ) from None
    given = {name: value for name, value in start.request.settings.items() if name != "run_dir"}
    given = not_planned(given, budget)
    cfg = resumed(stored, given, where=store.url, option=OPTION)
    return dataclasses.replace(cfg, data_dir=start.cfg.data_dir)


def check_data(store: Store, manifest: Manifest, cfg: TrainConfig) -> None:
    """Raise ValueError unless the data here are those of the run there."""
    splits = open_dataset(Path(cfg.data_dir), cfg.upright)
    for split in ("train", "val"):
        now = json.loads(json.dumps(fingerprint(getattr(splits, split))))
        then = manifest.data.get(split)
        if then not in (now, None):
            raise ValueError(
                f"--data_dir {cfg.data_dir} is not the data of the run in --mirror {store.url}: "
                f"its {split} split has {now['num_images']} images in {now['num_classes']} "
                f"classes, the run's had {then['num_images']} in {then['num_classes']}, or the "
                "file names or packing options differ. Give the same data, or another --mirror"
            )


def restore(store: Store, manifest: Manifest, run_dir: Path, say: Say) -> None:
    """Copy the run there into its folder here. Raises StoreError."""
    folder = run_folder.checkpoints_dir(run_dir)
    had_run = ownership.has_run(run_dir)
    checkpoint.make_folder(folder)
    events = (n for n in store.list("tensorboard") if fnmatchcase(n, f"*/{ownership.EVENTS}"))
    # config.json is the first of them: from then on, this folder belongs to the run.
    for name in (*SMALL_FILES, *(name for name in events if name.count("/") == 1)):
        found = None if had_run and name == CONFIG else store.get(name)
        if had_run and name == ownership.PAID and is_less_paid(found, run_dir):
            continue
        if found is not None:
            (run_dir / name).parent.mkdir(exist_ok=True)
            with files.replaced(run_dir / name, "wb", sync=True) as file:
                file.write(found[0])
        elif had_run and name == ownership.BUDGET_EVENTS:
            # The run went on without these: they would contradict its newer checkpoint.
            (run_dir / name).unlink(missing_ok=True)
    best = manifest.copy_of(manifest.best_step)
    if best is not None and best.step != manifest.step:
        with suppress(checkpoint.DamagedCheckpointError):
            download(store, best, folder / checkpoint.BEST)
    copy = download_newest(store, manifest, folder, say)
    if best is not None and best.step == copy.step:
        checkpoint.mark_best(checkpoint.step_path(folder, copy.step))
    correct_status(run_dir, copy.step)
    text = f"restored from {store.url}: step {copy.step}, run {manifest.run[:8]}"
    now = run_folder.commit()
    if manifest.commit != now:
        text += f"; trained by commit {manifest.commit[:12]}, from here on by {now[:12]}"
    say(text)
    with open(run_dir / ownership.LOG, "a") as file:
        file.write(json.dumps({"kind": "event", "step": copy.step, "text": text}) + "\n")


def is_less_paid(found: tuple[bytes, str] | None, run_dir: Path) -> bool:
    """Whether the file of the paid clock there knows of less time than the folder's own: it is
    copied now and then, and this one was written every second."""
    text = found[0].strip() if found else b""
    return not text.isdigit() or int(text) < 1000 * status.kept_paid_s(run_dir)


def correct_status(run_dir: Path, step: int) -> None:
    """Have the restored status.json say what is true of the checkpoint of this step beside it."""
    restored = status.known_status(run_dir)
    if "state" not in restored:
        return
    # It was copied before the last checkpoint was: a machine that was lost in between leaves a run
    # that is done without its end, which must be trained again.
    is_short = restored["state"] == status.DONE and restored.get("step") != step
    state = status.INTERRUPTED if is_short else restored["state"]
    status.write_status(run_dir, state=state, mirrored_step=step)


def download_newest(store: Store, manifest: Manifest, folder: Path, say: Say) -> Copy:
    """Copy the newest checkpoint that is whole there; damaged ones are named."""
    damaged = []
    for copy in reversed(manifest.copies):
        try:
            download(store, copy, checkpoint.step_path(folder, copy.step))
        except checkpoint.DamagedCheckpointError as error:
            damaged.append(str(error))
            continue
        for text in damaged:
            say(f"warning: {text}: beginning from step {copy.step}")
        return copy
    raise StoreError(store.url, f"no checkpoint there is whole: {damaged[0]}", is_passing=False)


def download(store: Store, copy: Copy, path: Path) -> None:
    """Copy one checkpoint to a path. Raises DamagedCheckpointError, and StoreError."""
    where = f"{store.url}/{copy.name}"
    if store.entry(copy.name) is None:
        raise checkpoint.DamagedCheckpointError(f"{where} is not there")
    with files.replaced(path, "wb", sync=True) as file:
        for begin in range(0, copy.num_bytes, BLOCK_BYTES):
            file.write(store.read(copy.name, begin, BLOCK_BYTES))
        file.flush()
        try:
            checkpoint.verify(Path(file.name))
            with open(file.name, "rb") as written:
                is_right = checkpoint.size_and_sha256(written) == (copy.num_bytes, copy.sha256)
        except checkpoint.DamagedCheckpointError:
            is_right = False
        if not is_right:
            raise checkpoint.DamagedCheckpointError(f"{where} is damaged")
