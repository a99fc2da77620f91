"""Train a ResNet50 on a folder of images, resumably, on one GPU, several, or a CPU.

    python train.py                                    # resume, or start the default recipe
    python train.py --data_dir DIR --run_dir runs/NAME --recipe onecycle50
    torchrun --standalone --nproc_per_node=2 train.py --data_dir DIR --run_dir runs/NAME

`python train.py` starts torchrun on all GPUs and restarts it after a crash (supervisor.py); every
rank then runs `train` below. The same command, after whatever interruption, resumes. SIGTERM and
Ctrl-C save first; SIGUSR1 saves and goes on. Exit codes: 0 done, 1 crashed, 2 change something,
3 diverged, 75 interrupted and resumable.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch

import command_line
import distributed
import engine
import launch
import run_folder
import sampling
import trainer
from assembly import Run
from command_line import with_underscores
from recipes import RECIPES
from slots import Batch

RETRY_SAVE_S = 60.0  # after a checkpoint that could not be written: a disk is cleared by hand


@dataclass
class Orders:
    """What all ranks agreed on between two steps."""

    stop: bool
    save: bool
    out_of_time: bool


def train(run: Run) -> str:
    """The loop: agree, finish an epoch, save, take a step. Returns the state the run ended in."""
    cfg, plan, state, log = run.cfg, run.plan, run.state, run.log
    while True:
        orders = agree(run)
        ends = state.step >= plan.stop_step or orders.out_of_time or log.has_top1(cfg.target_top1)
        if (ends or plan.ends_epoch(state.step)) and not log.has_row(state.step):
            orders.save = True
            orders.stop = not finish_epoch(run, ends) or orders.stop
            ends = ends or log.has_top1(cfg.target_top1)
        if orders.save or orders.stop:
            run.log_requests()
            save(run)
        if ends and log.has_row(state.step):
            return run_folder.DONE if is_saved(run) else run_folder.INTERRUPTED
        if orders.stop:
            is_saved(run)
            return run_folder.INTERRUPTED

        start = time.monotonic()
        micro_batches = list(islice(run.batches, plan.micro_batches_per_rank))
        data_wait_s = time.monotonic() - start
        lr = state.lr
        sums = engine.train_step(state, run.network, micro_batches, cfg, run.precision, run.ranks)
        engine.advance(state, sums)
        run.note_bad_images(micro_batches)
        log.step_done(state.step, time.monotonic() - start, data_wait_s)
        if state.step % cfg.log_every_steps == 0:
            log.train_record(
                state.step, lr, engine.means(distributed.sum_over_ranks(sums, run.ranks))
            )


def agree(run: Run) -> Orders:
    """Give every rank the same orders; one exchange of five host numbers a step.

    Raises Ended when the loss is no longer finite or too many images cannot be decoded.
    """
    cfg, step = run.cfg, run.state.step
    run.heartbeat.beat(step)
    report_failed_save(run)
    by_steps = cfg.save_every_steps and step % cfg.save_every_steps == 0 and step != run.saved_step
    by_time = time.monotonic() >= run.save_due_s and not run.writer.is_busy
    save_due = run.ranks.is_main and (by_steps or by_time)
    save_due = save_due or run.interruption.save_requested  # on whichever rank
    over = cfg.max_minutes and run.log.paid_s >= 60 * cfg.max_minutes
    stop, save_now, out_of_time, non_finite, num_new_bad = distributed.agree(
        [
            int(run.interruption.requested),
            int(save_due),
            int(run.ranks.is_main and bool(over)),
            run.non_finite.read(run.state.epoch_sums[engine.NON_FINITE]),
            len(run.new_bad_images),
        ],
        run.ranks,
    )
    if non_finite:
        raise_diverged(run)
    if num_new_bad:
        report_bad_images(run)
    if out_of_time and step < run.plan.stop_step and not run.log.has_row(step):
        run.log.event(
            step, f"--max_minutes {cfg.max_minutes:g} are over: ending early, at step {step}"
        )
    return Orders(stop > 0, save_now > 0, out_of_time > 0)


def finish_epoch(run: Run, ends: bool) -> bool:
    """Evaluate if this is a time to, and add the epoch's row; False if interrupted before that."""
    cfg, plan, state = run.cfg, run.plan, run.state
    train_sums = distributed.sum_over_ranks(state.epoch_sums, run.ranks)
    if train_sums[engine.NON_FINITE]:
        raise_diverged(run)
    val_sums = None
    if ends or plan.evaluates_at(state.step, cfg.eval_every_epochs):
        val_sums = evaluate(run)
        if val_sums is None:
            return False
        if val_sums[engine.NON_FINITE]:
            raise_diverged(run)
    val_means = None if val_sums is None else engine.means(val_sums)
    run.log.epoch_row(state.step, state.lr, engine.means(train_sums), val_means)
    if plan.ends_epoch(state.step):
        state.epoch_sums.zero_()
        # Only what an uninterrupted run evaluates too may count on a plateau.
        if val_means and plan.evaluates_at(state.step, cfg.eval_every_epochs, early_end=False):
            lower_on_plateau(run, val_means["loss"])
    return True


def lower_on_plateau(run: Run, val_loss: float) -> None:
    state = run.state
    if state.learning_rate.evaluated(state.step, val_loss) and state.step < run.plan.total_steps:
        run.log.event(state.step, f"on a plateau: learning rate {state.lr:.4g} from here on")


def evaluate(run: Run) -> torch.Tensor | None:
    """Summed results of the validation split, on all ranks; None if interrupted."""
    cfg, ranks = run.cfg, run.ranks
    num_images = len(run.val_set)
    keys = sampling.eval_keys(
        num_images, cfg.device_batch_size, cfg.eval_crop, ranks.rank, ranks.world_size
    )
    rounds = -(-num_images // (cfg.device_batch_size * ranks.world_size))
    batches = chain(run.feeder.batches(trainer.EVAL, keys), [None] * (rounds - len(keys)))

    def should_stop(batch: Batch | None) -> bool:
        run.heartbeat.beat(run.state.step)
        run.note_bad_images([batch] if batch else [])
        return distributed.agree([int(run.interruption.requested)], ranks)[0] > 0

    distributed.broadcast_buffers([run.state.model, run.state.eval_model], ranks)
    return engine.evaluate(
        run.state.eval_model, batches, num_images, run.precision, ranks, should_stop
    )


def save(run: Run) -> None:
    """Begin to write a checkpoint, and best.pt if this step is the best one; every rank must call
    it. Raises Ended rather than save a model that is no longer finite.
    """
    state, ranks, log = run.state, run.ranks, run.log
    if run.saved_step == state.step:
        return
    epoch_sums = distributed.sum_over_ranks(state.epoch_sums, ranks)
    distributed.broadcast_buffers([state.model, state.eval_model], ranks)
    if epoch_sums[engine.NON_FINITE] or not engine.all_finite(state.model):
        raise_diverged(run)
    run.save_due_s = time.monotonic() + 60 * run.cfg.save_every_minutes
    run.saved_step = state.step
    if ranks.is_main:
        contents = run.origin | state.state_dict()
        contents |= {"epoch_sums": epoch_sums, "rows": log.rows, "best": log.best}
        is_best = log.best is not None and log.best["step"] == state.step
        run.writer.start(state.step, contents, is_best)
        log.status(run_folder.RUNNING, state.step)


def is_saved(run: Run) -> bool:
    """Wait until the checkpoint of this step is written, and tell whether it was."""
    run.writer.wait()
    report_failed_save(run)
    return run.saved_step == run.state.step


def report_failed_save(run: Run) -> None:
    """Say that a checkpoint could not be written, and have rank 0 call for another one soon.

    A disk that is full or gone costs this checkpoint, not the run: the old ones stand.
    """
    failure = run.writer.take_failure()
    if failure is None:
        return
    if failure.step == run.saved_step:  # else a newer one has been begun, or written, since
        run.saved_step = -1
        run.save_due_s = time.monotonic() + RETRY_SAVE_S
    run.log.event(
        run.state.step,
        f"warning: no checkpoint of step {failure.step}: {run.writer.folder}: "
        f"{failure.error.strerror}; older ones stand, training goes on and tries again",
    )


def raise_diverged(run: Run) -> None:
    """End the run on all ranks; checkpoints from before stand."""
    run.log.event(
        run.state.step,
        f"error: the loss is not finite at or before step {run.state.step}. The checkpoints are "
        "from before. Try a new run with a lower --max_lr, or --clip_grad_norm 1",
    )
    raise launch.Ended(run_folder.DIVERGED)


def report_bad_images(run: Run) -> None:
    """Name new undecodable files once; raises Ended if there are now too many."""
    new = distributed.gather_names(run.new_bad_images, run.ranks) - run.bad_images
    run.bad_images |= new
    run.new_bad_images = set()
    for name in sorted(new):
        run.log.event(run.state.step, f"warning: cannot be decoded, replaced: {name}")
    if len(run.bad_images) > run.cfg.max_bad_images:
        run.log.event(
            run.state.step,
            f"error: {len(run.bad_images)} images cannot be decoded, more than --max_bad_images "
            f"{run.cfg.max_bad_images}: repair or remove them (log.jsonl names them), or raise it",
        )
        raise launch.Ended(run_folder.CONFIG_ERROR)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line; then be a rank, or the supervisor of all ranks."""
    argv = with_underscores(sys.argv[1:] if argv is None else argv)
    presets = {name: recipe.summary for name, recipe in RECIPES.items()}
    parser = command_line.build_parser(presets, epilog=__doc__.split("\n", 2)[2])
    request = command_line.parse(parser, argv)
    if request.list_recipes or request.print_config:
        try:
            print(launch.answer(request), end="")
        except ValueError as error:
            parser.error(str(error))
        return 0
    if distributed.launched_by_torchrun():
        return launch.run_rank(request, train)
    return launch.supervise(request, argv, __file__)


if __name__ == "__main__":
    sys.exit(main())
