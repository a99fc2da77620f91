"""One rank, as torchrun starts it: it trains, and leaves the outcome in status.json."""

import dataclasses
import faulthandler
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path

from resnet50.config.command_line import print_error
from resnet50.config.train_config import TrainConfig
from resnet50.config.train_flags import CPU, Request
from resnet50.records import ownership, run_folder, status
from resnet50.records.paid_clock import PaidClock
from resnet50.run import instance_price, mirror_start, mirroring
from resnet50.run.resolve import resolve, with_data
from resnet50.run.start import Ended, Run, start
from resnet50.run.supervisor import ATTEMPT
from resnet50.system import processes
from resnet50.system.interruption import Interrupted, Interruption
from resnet50.system.last_word import say_after_launcher
from resnet50.system.locking import FolderLock
from resnet50.training import batch_fit, distributed
from resnet50.training.distributed import Ranks
from resnet50.training.plan import image_size_at_step


def run_rank(request: Request, train: Callable[[Run], str]) -> int:
    """Run one rank from its start to its end; returns the exit code.

    train: returns the state that the run ended in, or raises Ended.
    """
    faulthandler.register(signal.SIGUSR2)  # the supervisor asks a hung run where it hangs
    processes.die_with_launcher()
    stop = Interruption()
    attempt = os.environ.get(ATTEMPT) or uuid.uuid4().hex
    ranks = Ranks()
    lock = paid_clock = None
    try:
        ranks = distributed.read_ranks(use_gpus=request.device != CPU)
        cfg = settled(request, ranks, stop, attempt)
        run_dir = Path(cfg.run_dir)
        if ranks.is_main:
            check_folder(run_dir, request, ranks)
            lock = FolderLock(run_dir)
            paid_clock = PaidClock.of_rank(run_dir, request.fresh)
            for text in (*run_folder.problems(run_dir), *filter(None, [lock.missing])):
                print(f"warning: {text}", flush=True)
            status.write_status(run_dir, state=status.RUNNING, attempt=attempt, message="")
        run = start(cfg, ranks, attempt, stop, paid_clock, request.settings)
        if ranks.is_main:  # only now: a refused start must leave no settings to resume
            settings = run.parts.cfg.to_json()
            precision = run.parts.precision.name
            device, budget = ranks.device.type, run.budget
            run_folder.write_config(run_dir, settings, sys.argv, device, precision, budget)
            mirroring.start(run)
    except Interrupted as interrupted:
        text = "interrupted before the first step; the same command starts again"
        if lock:
            print(text, flush=True)
            status.write_status(run_dir, state=status.INTERRUPTED, attempt=attempt)
        say_last(text, ranks)
        distributed.report_problem(Interrupted(text), ranks)
        traceback.clear_frames(interrupted.__traceback__)  # which may hold the wrapped model
        distributed.disconnect()
        return exit_code(status.INTERRUPTED)
    except (ValueError, OSError) as error:
        if is_heard(ranks):
            print_error("train.py", error)
        state = mirror_start.state_after(error)
        if lock:
            status.write_status(run_dir, state=state, attempt=attempt, message=str(error))
        distributed.report_problem(error, ranks)
        return exit_code(state)
    state = train_to_an_end(run, train)
    step = run.parts.state.step
    if state == status.INTERRUPTED:
        text = interrupted_message(run)
        run.log.say(text)
        say_last(text, ranks)
    if state == status.DONE:
        run.log.write_record(run.provenance["data"])
    run.log.close(state, step, run.writer.written_step)
    state = mirroring.finish(run, state)
    del run  # and with it the wrapped model
    distributed.disconnect()
    return exit_code(state)


def settled(request: Request, ranks: Ranks, stop: Interruption, attempt: str) -> TrainConfig:
    """The settings of the run that is there, or is restored from its mirror, or begins."""
    cfg = with_data(resolve(request, ranks.world_size))
    is_alone = processes.SUPERVISOR_PID not in os.environ
    if is_alone and mirroring.restored(cfg, request, ranks, stop, attempt):
        # The data that were compared with the run's, and not its folder on another machine.
        cfg = dataclasses.replace(resolve(request, ranks.world_size), data_dir=cfg.data_dir)
    return with_price(cfg, request, ranks)


def with_price(cfg: TrainConfig, request: Request, ranks: Ranks) -> TrainConfig:
    """With a number for --price_per_hour auto, which torchrun by hand may have passed.

    Raises ValueError on several hosts, of which each knows its own price only.
    """
    before, (cfg, said) = cfg, instance_price.settled(cfg, request.settings)
    if cfg != before and ranks.world_size > ranks.local_world_size:
        raise ValueError(
            "--price_per_hour auto knows the price of one host: give the sum of all hosts' prices"
        )
    if said and ranks.is_main:
        print(said, flush=True)
    return cfg


def is_heard(ranks: Ranks) -> bool:
    """Whether this rank reports why the run cannot start: one a host, each of which has its log.

    A Slurm job has one log. There rank 0 speaks alone, which hears of the others' problems as long
    as all are not connected (distributed.report_problem).
    """
    has_one_log = ATTEMPT in os.environ and not distributed.is_connected()
    return ranks.rank == 0 if has_one_log else ranks.local_rank == 0


def check_folder(run_dir: Path, request: Request, ranks: Ranks) -> None:
    """Raise ValueError, before anything is written, if this run must not begin in this folder."""
    ownership.refuse_foreign(run_dir)
    if request.fresh and ownership.has_run(run_dir):
        raise ValueError(f"--fresh: there is a run in {run_dir}: `python train.py` can replace it")
    run_folder.refuse_lost_checkpoints(run_dir)
    if ranks.device.type == CPU and request.device != CPU:
        run_folder.refuse_cpu(run_dir)


def interrupted_message(run: Run) -> str:
    """Where the run was interrupted, and from where it can be resumed."""
    step = run.parts.state.step
    if run.saved_step == step:
        return f"interrupted at step {step}, which is saved; the same command resumes from there"
    return f"interrupted at step {step}, not saved; the same command resumes from an earlier step"


def say_last(text: str, ranks: Ranks) -> None:
    """If torchrun was started by hand, end each host's log with this."""
    is_by_hand = "TORCHELASTIC_RUN_ID" in os.environ and ATTEMPT not in os.environ
    if is_by_hand and ranks.local_rank == 0:
        text += " (torchrun's traceback, if there is one above, only says that it was stopped)"
        say_after_launcher(text)


def exit_code(state: str) -> int:
    """The exit code of a rank whose run ended in this state.

    The supervisor reads status.json; on any code but 0, torchrun would print a traceback.
    """
    return 0 if ATTEMPT in os.environ else status.EXIT_CODES[state]


def train_to_an_end(run: Run, train: Callable[[Run], str]) -> str:
    """Train; returns the state that the run ended in. Raises errors other than lack of memory."""
    try:
        return train(run)
    except Ended as ended:
        return ended.args[0]
    except RuntimeError as error:
        if not is_lasting_lack_of_memory(run, error):
            raise
        message = no_memory_message(run, error)
        run.log.event(run.parts.state.step, message)
        if run.parts.ranks.world_size > 1:
            end_all_ranks(run, message)
        return status.CONFIG_ERROR


def is_lasting_lack_of_memory(run: Run, error: RuntimeError) -> bool:
    """Whether the first step since the last checkpoint needs more memory than there is.

    If steps succeeded before, something else took the memory, and the supervisor restarts from the
    checkpoint.
    """
    is_first_step = run.parts.state.step == max(run.saved_step, 0)
    return batch_fit.is_out_of_memory(error) and is_first_step


def no_memory_message(run: Run, error: RuntimeError) -> str:
    """What needed the memory, and what to do."""
    parts, step = run.parts, run.parts.state.step
    size = image_size_at_step(parts.cfg, parts.plan, step)
    return (
        f"error: not enough memory on {parts.ranks.device} for step {step + 1}: "
        f"--device_batch_size {parts.cfg.device_batch_size} of {size} px "
        f"({str(error).splitlines()[0]}). Is another program using it (see nvidia-smi)? If not, "
        "start a new run with --device_batch_size auto"
    )


def end_all_ranks(run: Run, message: str) -> None:
    """Record the outcome, and end this process; the others wait for it until torchrun ends them."""
    time.sleep(1)  # until rank 0 waits too, and no longer writes status.json
    state, attempt = status.CONFIG_ERROR, run.log.attempt
    status.write_status(run.log.run_dir, state=state, attempt=attempt, message=message)
    print(message, file=sys.stderr, flush=True)
    os._exit(status.EXIT_CODES[state])
