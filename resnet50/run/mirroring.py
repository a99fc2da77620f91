"""What a rank does with a run's mirror: restore it at the start, begin to copy, finish copying.

mirror.py has the copying itself, and mirror_start.py what is done before a run begins.
"""

import functools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from resnet50.config.train_config import NO_MIRROR, TrainConfig
from resnet50.config.train_flags import Request
from resnet50.records import ownership, run_folder, status
from resnet50.run import consistency, mirror, mirror_keeper, mirror_start
from resnet50.run.mirror import Mirror
from resnet50.system import processes
from resnet50.system.interruption import Interrupted, Interruption
from resnet50.system.locking import FolderLock
from resnet50.training.distributed import Ranks

if TYPE_CHECKING:
    from resnet50.run.start import Run


def restored(
    cfg: TrainConfig, request: Request, ranks: Ranks, stop: Interruption, attempt: str
) -> bool:
    """Have rank 0 do what a supervisor would have done for a run with a mirror; returns whether the
    run's folder has changed. Every rank must call it, and waits. Raises what `prepare` raises, of
    which status.json then tells launch/slurm.sbatch."""
    if cfg.mirror == NO_MIRROR:
        return False
    run_dir, run = Path(cfg.run_dir), ""
    if ranks.is_main:
        mirror_start.check_place(cfg)
        ownership.refuse_foreign(run_dir)
        lock = FolderLock(run_dir)
        os.environ[mirror_start.OWNER] = owner = mirror_start.new_owner()
        say = functools.partial(print, flush=True)
        try:
            if mirror_start.prepare(cfg, request, owner, say, lambda: stop.requested):
                run = run_folder.read_id(run_dir)
        except (ValueError, OSError) as error:
            state, text = mirror_start.state_after(error), str(error)
            status.write_status(run_dir, state=state, attempt=attempt, message=text)
            raise
        except Interrupted:
            status.write_status(run_dir, state=status.INTERRUPTED, attempt=attempt, message="")
            raise
        finally:
            lock.release()
    run = consistency.run_of_rank_0(cfg, run, ranks)
    # A network file system may take a while to show another host's new files.
    until_s = time.monotonic() + consistency.PATIENCE_S
    while run and run_folder.read_id(run_dir) != run and time.monotonic() < until_s:
        time.sleep(consistency.POLL_S)
    return bool(run)


def start(run: "Run") -> None:
    """Begin to copy the run's checkpoints, if it has a mirror. Rank 0 calls it."""
    cfg = run.parts.cfg
    if cfg.mirror == NO_MIRROR:
        return
    run.mirror = Mirror(
        cfg.mirror,
        run.log.run_dir,
        owner=os.environ[mirror_start.OWNER],
        pid=int(os.environ.get(processes.SUPERVISOR_PID, os.getpid())),
        keep=cfg.keep_checkpoints,
        data=run.provenance["data"],
    )
    run.writer.on_written, run.log.more_status = run.mirror.note, run.mirror.status
    best = run.results.best
    run.mirror.start(run.saved_step, -1 if best is None else best["step"])


def finish(run: "Run", state: str) -> str:
    """Copy what the mirror lacks; returns the state that the run ends in.

    A run that is done and not all copied may be resumed, which copies the rest: on a spot machine
    the mirror is all that will be left of it.
    """
    if run.mirror is None:
        return state
    step, is_over = run.parts.state.step, state in status.ENDED

    def limit_s() -> float:
        has_time = is_over and not run.interruption.requested
        return mirror.ENDED_S if has_time else mirror.STOPPED_S

    mirror_keeper.stop()  # of a torchrun by hand; the ranks beat
    has_all = run.mirror.finish(limit_s, lambda: run.heartbeat.beat(step))
    run.mirror.report(run.log, step)
    if has_all:
        run.log.write_status(state, step)  # with the step that is safe now
        return state
    text = f"warning: {run.mirror.standing()}; the same command copies the rest"
    run.log.event(step, text)
    if state == status.DONE:
        run.log.write_status(status.INTERRUPTED, step)
        return status.INTERRUPTED
    return state
