"""The two things that train.py is: the supervisor of torchrun, and a rank that torchrun starts."""

import faulthandler
import json
import os
import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import assembly
import checkpoint
import distributed
import heartbeat
import interruption
import recipe_table
import run_folder
import stored_config
import supervisor
from assembly import Run
from command_line import Request
from config import TrainConfig
from interruption import Interrupted
from locking import FolderLock
from recipes import RECIPES

NO_LIMIT = "--max_minutes 0 --max_steps 0 --target_top1 0"


class Ended(Exception):  # noqa: N818 (not always an error)
    """The run cannot go on; the state it ended in is the only argument."""


def answer(request: Request) -> str:
    """What --list_recipes or --print_config print. Raises ValueError for impossible settings."""
    if request.list_recipes:
        return recipe_table.describe(RECIPES)
    return json.dumps(stored_config.to_json(assembly.resolve(request)), indent=2) + "\n"


def supervise(request: Request, argv: Sequence[str], script: str) -> int:
    """Check, and have torchrun run `script` with the words of argv; returns the exit code.

    A run that is done is left alone, unless new limits let it go on.
    """
    try:
        cfg = assembly.with_data(assembly.resolve(request))
        run_dir = Path(cfg.run_dir)
        lock = FolderLock(run_dir, ".supervisor.lock")
        FolderLock(run_dir).release()  # a plain torchrun may be training there
        if request.fresh:
            run_folder.make_room(run_dir, request.overwrite)
        status, stored = run_folder.read_status(run_dir), run_folder.read_settings(run_dir)
    except (ValueError, OSError) as error:
        say_error(error)
        return 2
    if status.get("state") == run_folder.DONE and not prolonged(cfg, stored, status["step"]):
        no_limit = f"; without a limit: python train.py --run_dir {run_dir} {NO_LIMIT}"
        print(
            f"train.py: the run in {run_dir} is done at step {status.get('step')}, best top-1 "
            f"{status.get('best_top1'):.2f}%. Give a new --run_dir to train another one"
            f"{no_limit if cfg.max_minutes or cfg.max_steps or cfg.target_top1 else ''}"
        )
        return 0
    flags = [word for word in argv if word not in ("--fresh", "--overwrite")]
    command = [script, *flags, f"--run_dir={run_dir}", f"--data_dir={cfg.data_dir}"]
    watcher = supervisor.Supervisor(
        command,
        max(1, torch.cuda.device_count()),
        read_status=lambda: run_folder.read_status(run_dir),
        newest_step=lambda: checkpoint.newest_step(run_folder.checkpoints_dir(run_dir)),
        heartbeat=lambda: heartbeat.read(run_dir),
        hang_s=60 * cfg.hang_minutes,
        exit_codes=run_folder.EXIT_CODES,
    )
    code = watcher.run()
    state = run_folder.read_status(run_dir).get("state")
    if state == run_folder.RUNNING:  # nobody was left to write it
        interrupted = code == run_folder.EXIT_CODES[run_folder.INTERRUPTED]
        state = run_folder.INTERRUPTED if interrupted else run_folder.CRASHED
        run_folder.write_status(run_dir, state=state)
    lock.release()
    return code


def prolonged(cfg: TrainConfig, stored: dict[str, object], step: int) -> bool:
    """Whether new limits let a run that ended at `step` go on."""
    if any(getattr(cfg, name) != stored.get(name, 0) for name in ("max_minutes", "target_top1")):
        return True
    return cfg.max_steps != stored["max_steps"] and not 0 < cfg.max_steps <= step


def run_rank(request: Request, train: Callable[[Run], str]) -> int:
    """What torchrun starts: train, and leave the outcome in status.json.

    train: goes on until it knows the state that the run ends in, or raises Ended.
    """
    faulthandler.register(signal.SIGUSR2)  # the supervisor asks a run that hangs where it does
    interruption.die_with_launcher()
    stop = interruption.Interruption()
    supervised = supervisor.ATTEMPT in os.environ
    attempt = os.environ.get(supervisor.ATTEMPT) or uuid.uuid4().hex
    ranks, lock = distributed.Ranks(), None
    try:
        ranks = distributed.read_ranks()
        cfg = assembly.with_data(assembly.resolve(request, ranks.world_size))
        run_dir = Path(cfg.run_dir)
        if request.fresh and run_folder.has_run(run_dir):
            raise ValueError(f"--fresh: a run lies in {run_dir}: `python train.py` can replace it")
        if ranks.is_main:
            lock = FolderLock(run_dir)
            run_folder.write_status(run_dir, state=run_folder.RUNNING, attempt=attempt, message="")
        run = assembly.start(cfg, ranks, attempt, stop)
        if ranks.is_main:  # only now: settings that cannot start are not those of a run to resume
            run_folder.write_config(run_dir, stored_config.to_json(run.cfg), sys.argv)
    except Interrupted:
        if lock:
            print("interrupted before the first step; the same command starts again", flush=True)
            run_folder.write_status(run_dir, state=run_folder.INTERRUPTED, attempt=attempt)
        distributed.disconnect()
        return 0 if supervised else run_folder.EXIT_CODES[run_folder.INTERRUPTED]
    except (ValueError, OSError) as error:
        if ranks.local_rank == 0:  # once on every host
            say_error(error)
        if lock:
            state = run_folder.CONFIG_ERROR
            run_folder.write_status(run_dir, state=state, attempt=attempt, message=str(error))
        distributed.tell_problem(error, ranks)
        return 0 if supervised else 2

    try:
        state = train(run)
    except Ended as ended:
        state = ended.args[0]
    except RuntimeError as error:
        state = assembly.explain_no_memory(run, error)
    if state == run_folder.INTERRUPTED:
        run.log.say(f"interrupted at step {run.state.step}; the same command goes on from there")
    run.log.close(state, run.state.step)
    distributed.disconnect()
    # The supervisor reads status.json; with another code torchrun would print a traceback.
    return 0 if supervised else run_folder.EXIT_CODES[state]


def say_error(error: Exception) -> None:
    print(f"train.py: error: {error}", file=sys.stderr, flush=True)
