"""Which run a command is about, and whether a run is the one that was asked for.

Standard library, Python 3.10.
"""

from collections.abc import Sequence
from pathlib import Path

from host import background
from resnet50.records import status
from resnet50.system import files


def choose(do: str, folders: Sequence[Path]) -> Path:
    """The run in these folders that trains, the newest if several do; else the newest of all."""
    locks = [lock for folder in folders for lock in folder.glob(f"*/{status.SUPERVISOR_LOCK}")]
    training = [lock for lock in locks if status.supervisor_of(lock.parent)]
    found = training or [file for folder in folders for file in folder.glob(f"*/{status.FILE}")]
    if not found:
        raise ValueError(f"no run in {' or '.join(map(str, folders))}; give --run_dir")
    chosen, *others = sorted(found, key=lambda file: file.stat().st_mtime, reverse=True)
    if training and others:
        lines = [
            f"\n  {background.script_line(f'--{do}', '--run_dir', str(lock.parent))}"
            for lock in (training if do == "stop" else others)
        ]
        if do == "stop":
            raise ValueError(f"several runs train; which one?{''.join(lines)}")
        print(f"other runs train, too:{''.join(lines)}", flush=True)
    return chosen.parent


def end_of(run_dir: Path) -> str:
    """How a run has ended for good: done, diverged, or gone; empty if it may go on."""
    try:
        run_dir.stat()
    except FileNotFoundError:
        return "gone"
    except OSError:  # another user's, which may be anything
        return ""
    state = status.known_status(run_dir).get("state")
    return str(state) if state in status.ENDED else ""


def lacks_copy(run_dir: Path, mirror: str) -> bool:
    """Whether a run that is done is to be copied to a place that it was not copied to."""
    if not mirror or status.read_status(run_dir).get("state") != status.DONE:
        return False
    settings = files.read_json(run_dir / status.CONFIG).get("settings") or {}
    return settings.get("mirror") != mirror


def refuse_another(run_dir: Path, recipe: str | None, data_dir: Path | None) -> None:
    """Raise ValueError if the folder's run, which stays as it is, is not the one asked for.

    --data_dir a/images and b/images both have runs/images unless --run_dir is given.
    """
    try:
        stored = files.read_json(run_dir / status.CONFIG).get("settings") or {}
    except ValueError:
        return  # damaged: its run goes on from a checkpoint
    differing = []
    if recipe and stored.get("recipe", recipe) != recipe:
        differing.append(f"--recipe {recipe} (the run has {stored['recipe']})")
    if data_dir and (data := stored.get("data_dir")):
        if Path(data).resolve() != data_dir.resolve():
            differing.append(f"--data_dir {data_dir} (the run has {data})")
    if differing:
        raise ValueError(
            f"there is another run in {run_dir}: {', '.join(differing)}. Give this one a "
            f"folder of its own: --run_dir {run_dir.with_name('OTHER')}"
        )
