"""Train a ResNet50 on a folder of images, resumably, on one GPU, several, or a CPU.

    python train.py                                    # resume, or start the default recipe
    python train.py --data_dir DIR --run_dir runs/NAME --recipe onecycle50
    torchrun --standalone --nproc_per_node=2 train.py --data_dir DIR --run_dir runs/NAME

`python train.py` starts torchrun on all GPUs, and again after a crash; every rank then runs `train`
below. To resume after any interruption, run the same command again. SIGTERM and Ctrl-C save and
stop; SIGUSR1 saves and continues. Exit codes: 0 done, 1 crashed, 2 settings or data to be changed,
3 diverged, 75 interrupted and resumable.
"""

import resnet50.system.preflight  # noqa: F401 (first: it reports what this Python lacks)

# isort: split
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch

from resnet50.config import train_flags
from resnet50.config.command_line import with_underscores
from resnet50.config.recipes import RECIPES
from resnet50.data.batch import Batch
from resnet50.records import status
from resnet50.run import on_end, resolve, resume, start, steering
from resnet50.run.rank import run_rank
from resnet50.run.start import Ended, Run
from resnet50.run.supervisor import supervise
from resnet50.system.interruption import ignore_late_signals
from resnet50.training import batch_fit, build, distributed, engine
from resnet50.training.plan import eval_keys

NOT_SAVED = -1
RETRY_SAVE_S = 60.0  # after a failed save: somebody may need time to free disk space


@dataclass(frozen=True)
class Requests:
    """What any rank asked for since the last step, combined: the same on all ranks."""

    stop: bool  # a signal, or a spot notice
    save: bool
    out_of_time: bool  # the --max_minutes limit has been reached
    steer: bool  # the controller of a budget wants to look


def train(run: Run) -> str:
    """The loop: exchange requests, finish an epoch, save, end, or take a step.

    Returns the state that the run ended in (resnet50/records/status.py).
    """
    parts, results, log = run.parts, run.results, run.log
    cfg, state = parts.cfg, parts.state
    while True:
        # Whatever one rank notices (a signal, a full disk, the clock), all ranks must act on at the
        # same step, or some would wait forever in a collective call that the others never make.
        requests = exchange_requests(run)
        stop, save_now = requests.stop, requests.save
        if requests.steer:
            steering.steer(run)
        is_end = ends_here(run, requests)

        # The end of an epoch, or of the run: evaluate, and add a row to the results. A run that was
        # saved at this step and resumed has the row already, and must not evaluate twice.
        if (is_end or parts.plan.ends_epoch(state.step)) and not results.has_row(state.step):
            finished = finish_epoch(run, is_end)
            stop = stop or not finished
            save_now = True

        # Save before stopping as well, so that no finished step has to be repeated.
        if stop or save_now:
            save(run)

        # Check again, since the evaluation above may have reached --target_top1. If there is no
        # row, the evaluation was interrupted, so the run is not done; resuming repeats it.
        if ends_here(run, requests) and results.has_row(state.step):
            # Done only once the last checkpoint is on disk; until then, rerunning retries.
            return status.DONE if wait_for_save(run) else status.INTERRUPTED
        if stop:
            wait_for_save(run)
            return status.INTERRUPTED

        # One step. Loader processes prefetch batches, so time spent waiting for one here means that
        # loading is the bottleneck: more CPU cores help, or smaller images from prepare_data.py.
        start_s = time.monotonic()
        micro_batches = list(islice(parts.batches, parts.plan.micro_batches_per_rank))
        data_wait_s = time.monotonic() - start_s
        lr = state.lr  # read before engine.advance() sets the next step's
        sums = engine.train_step(state, micro_batches, parts.context)
        engine.advance(state, sums)
        run.note_bad_images(micro_batches)
        log.step_done(state.step, time.monotonic() - start_s, data_wait_s)
        # Reading a loss waits for the GPU, so it is not done at every step.
        if state.step % cfg.log_every_steps == 0:
            means = engine.means(distributed.sum_over_ranks(sums, parts.ranks))
            log.train_record(state.step, lr, means)


def exchange_requests(run: Run) -> Requests:
    """Combine what all ranks ask for: one all-reduce of six integers per step, on the CPU.

    Also reports failed saves and new undecodable images. Raises Ended if there are too many of
    these, or if the loss is no longer finite.
    """
    state, ranks = run.parts.state, run.parts.ranks
    run.heartbeat.beat(state.step)
    report_failed_saves(run)
    if run.mirror is not None:
        run.mirror.report(run.log, state.step)
    # Sums over the ranks: more than 0 means that at least one rank asks for it.
    stop, save_now, out_of_time, steer, non_finite, num_new_bad = distributed.agree(
        [
            int(run.interruption.requested),
            int(save_is_due(run) or run.interruption.save_requested),
            # Clocks differ between hosts: rank 0's decides.
            int(ranks.is_main and time_is_over(run)),
            int(ranks.is_main and steering.is_due(run)),
            # A count from a few steps ago: waiting for this step's would leave the GPU idle.
            run.non_finite.read(state.epoch_sums[engine.NON_FINITE]),
            len(run.new_bad_images),
        ],
        ranks,
    )
    if non_finite:
        raise_diverged(run)
    if num_new_bad:
        report_bad_images(run)
    return Requests(stop > 0, save_now > 0, out_of_time > 0, steer > 0)


def save_is_due(run: Run) -> bool:
    """Whether a checkpoint is due, by steps or by time. Rank 0 decides; others return False."""
    cfg, step = run.parts.cfg, run.parts.state.step
    if not run.parts.ranks.is_main:
        return False
    # A resume begins at a saved step, which need not be saved again.
    if cfg.save_every_steps and step % cfg.save_every_steps == 0 and step != run.saved_step:
        return True
    # On a slow disk the previous save may still be running, and a new one would wait for it.
    return time.monotonic() >= run.save_due_s and not run.writer.is_busy


def time_is_over(run: Run) -> bool:
    max_minutes = run.parts.cfg.max_minutes
    return max_minutes > 0 and run.log.paid_s >= 60 * max_minutes


def ends_here(run: Run, requests: Requests) -> bool:
    """Whether the run ends at this step: its last one, out of time, or --target_top1 reached."""
    is_last_step = run.parts.state.step >= run.parts.plan.stop_step
    has_target = run.results.has_top1(run.parts.cfg.target_top1)
    return is_last_step or requests.out_of_time or has_target


def finish_epoch(run: Run, is_end: bool) -> bool:
    """Evaluate if it is due, and add the epoch's row; False if the evaluation was interrupted.

    is_end: whether the run ends here, so that it is evaluated in any case.
    """
    parts, log = run.parts, run.log
    cfg, plan, state = parts.cfg, parts.plan, parts.state
    if is_end and state.step < plan.stop_step and time_is_over(run):
        text = f"--max_minutes {cfg.max_minutes:g} reached: ending early, at step {state.step}"
        log.event(state.step, text)
    train_sums = distributed.sum_over_ranks(state.epoch_sums, parts.ranks)
    if train_sums[engine.NON_FINITE]:  # exact; the check before each step is a few steps late
        raise_diverged(run)
    val_means = None
    if is_end or plan.evaluates_at(state.step, cfg.eval_every_epochs):
        val_sums = evaluate(run)
        if val_sums is None:
            return False
        if val_sums[engine.NON_FINITE]:
            raise_diverged(run)
        val_means = engine.means(val_sums)
    row = log.row_of_epoch(state.step, state.lr, engine.means(train_sums), val_means)
    run.results.rows.append(row)
    log.epoch_done()
    # If the run ends in mid-epoch, keep the sums: with a higher limit, a resume can finish it.
    if plan.ends_epoch(state.step):
        state.epoch_sums.zero_()
        # Ignore evaluations that happen only because --max_steps ended the run early: they could
        # lower the learning rate, and a resumed run would differ from an uninterrupted one.
        if val_means and plan.evaluates_at(state.step, cfg.eval_every_epochs, early_end=False):
            lower_on_plateau(run, val_means["loss"])
    return True


def lower_on_plateau(run: Run, val_loss: float) -> None:
    state, plan = run.parts.state, run.parts.plan
    if state.learning_rate.note_val_loss(state.step, val_loss) and state.step < plan.total_steps:
        run.log.event(state.step, f"on a plateau: learning rate {state.lr:.4g} from here on")


def evaluate(run: Run) -> torch.Tensor | None:
    """Sums over the validation split (engine.batch_sums), on all ranks; None if interrupted."""
    parts, cfg, ranks = run.parts, run.parts.cfg, run.parts.ranks
    num_images = len(parts.splits.val)
    keys = eval_keys(num_images, cfg.device_batch_size, cfg.eval_crop, ranks.rank, ranks.world_size)

    def with_heartbeat(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            run.heartbeat.beat(parts.state.step)
            run.note_bad_images([batch])
            yield batch

    def should_stop() -> bool:
        wants_to = run.interruption.requested or bool(predict.lack)
        return distributed.agree([int(wants_to)], ranks)[0] > 0

    # Only rank 0 updates the batch-norm statistics (engine.train_step), so they are broadcast
    # before they are used: here and in `save`.
    distributed.broadcast_buffers([parts.state.model, parts.state.eval_model], ranks)
    model = parts.state.eval_model.eval()
    predict = partial(engine.predict, model, precision=parts.precision)
    predict = batch_fit.MemoryNoted(predict, parts.state.num_classes)
    batches = with_heartbeat(parts.loader.batches(build.EVAL, keys))
    sums = None
    try:
        sums = engine.evaluate(predict, batches, num_images, ranks, should_stop)
    except RuntimeError as error:
        # Raised outside a prediction, where other ranks may be waiting for this one.
        if ranks.world_size > 1 or not batch_fit.is_out_of_memory(error):
            raise
        predict.lack = str(error)
    if distributed.agree([int(bool(predict.lack))], ranks)[0]:
        end_without_memory(run, predict.lack)
    return sums


def end_without_memory(run: Run, lack: str) -> None:
    """Save the epoch that could not be evaluated, say what to do, and end; on all ranks.

    lack: this rank's out-of-memory error, if it had one.
    """
    save(run)
    stands = "is saved" if wait_for_save(run) else "could not be saved"
    cfg, step = run.parts.cfg, run.parts.state.step
    run.log.event(
        step,
        f"error: not enough memory on {run.parts.ranks.device} to evaluate batches of "
        f"{cfg.device_batch_size} images of {cfg.eval_crop} px ({lack.partition(chr(10))[0]}). "
        f"Step {step} {stands}: the same command evaluates it first. Is another program using the "
        "memory (nvidia-smi)? If not, start a new run with a smaller --device_batch_size",
    )
    raise Ended(status.CONFIG_ERROR)


def save(run: Run) -> None:
    """Start writing a checkpoint in the background, and best.pt if this step is the best so far.

    Every rank must call it. Raises Ended rather than save a model that is no longer finite.
    """
    state, ranks, log = run.parts.state, run.parts.ranks, run.log
    start.acknowledge(run.interruption, log, ranks, state.step)
    # All ranks agree here: rank 0 alone learns of a failed save, but none saves a step twice.
    if run.saved_step == state.step:
        return
    # Collective calls: every rank must take part, although only rank 0 writes.
    epoch_sums = distributed.sum_over_ranks(state.epoch_sums, ranks)
    distributed.broadcast_buffers([state.model, state.eval_model], ranks)
    # A checkpoint full of NaN would displace a good one, and every resume would diverge again.
    if epoch_sums[engine.NON_FINITE] or not engine.all_finite(state.model):
        raise_diverged(run)
    run.schedule_save(delay_s=60 * run.parts.cfg.save_every_minutes)
    run.saved_step = state.step
    if ranks.is_main:
        best = run.results.best
        is_best = best is not None and best["step"] == state.step
        contents = resume.checkpoint_contents(run, epoch_sums)
        run.writer.start(state.step, contents, is_best)
        log.write_status(status.RUNNING, state.step, saved_step=run.writer.written_step)


def wait_for_save(run: Run) -> bool:
    """Wait until the checkpoint of this step is written; returns whether it was."""
    run.writer.wait()
    report_failed_saves(run)
    return run.saved_step == run.parts.state.step


def report_failed_saves(run: Run) -> None:
    """Report failed saves, and have rank 0 schedule another one soon.

    A full or missing disk costs this checkpoint, not the run: older ones are kept.
    """
    for failure in run.writer.take_failures():
        if failure.step == run.saved_step:  # otherwise a newer save has started since
            run.saved_step = NOT_SAVED
            run.schedule_save(delay_s=RETRY_SAVE_S)
        run.log.event(
            run.parts.state.step,
            f"warning: no checkpoint of step {failure.step}: {run.writer.folder}: "
            f"{failure.error.strerror}; older ones are kept, training continues and will try again",
        )


def raise_diverged(run: Run) -> None:
    """End the run on all ranks; earlier checkpoints are kept."""
    step = run.parts.state.step
    run.log.event(
        step,
        f"error: the loss is not finite at or before step {step}. Existing checkpoints are "
        "from before that. Try a new run with a lower --max_lr, or --clip_grad_norm 1",
    )
    raise Ended(status.DIVERGED)


def report_bad_images(run: Run) -> None:
    """Log each new undecodable file once; raises Ended if there are now too many of them."""
    step, limit = run.parts.state.step, run.parts.cfg.max_bad_images
    new = distributed.gather_names(run.new_bad_images, run.parts.ranks) - run.bad_images
    run.bad_images |= new
    run.new_bad_images = set()
    for name in sorted(new):
        run.log.event(step, f"warning: cannot be decoded, replaced: {name}")
    if len(run.bad_images) > limit:
        run.log.event(
            step,
            f"error: {len(run.bad_images)} images cannot be decoded, more than --max_bad_images "
            f"{limit}: repair or remove them (log.jsonl names them), or raise the limit",
        )
        raise Ended(status.CONFIG_ERROR)


def main(argv: Sequence[str] | None = None) -> int:
    """Run as one rank if torchrun started this process, else as the supervisor of all ranks."""
    # Normalized here already, since `supervise` passes these words on to the ranks.
    argv = with_underscores(sys.argv[1:] if argv is None else argv)
    summaries = {name: recipe.summary for name, recipe in RECIPES.items()}
    usage = __doc__.split("\n", 2)[2]  # the docstring without its summary line
    parser = train_flags.build_parser(summaries, epilog=usage)
    request = train_flags.parse(parser, argv)
    if threading.current_thread() is not threading.main_thread():
        parser.error("it handles signals, so it needs the main thread: start it as a program")
    if request.on_end and distributed.launched_by_torchrun():
        parser.error("--on_end needs `python train.py`: torchrun has nobody left to run it")
    if request.on_end and (problem := on_end.problem(request.on_end)):
        parser.error(f"--on_end {request.on_end!r} {problem}")
    if request.list_recipes or request.print_config:
        try:
            print(resolve.answer(request), end="")
        except ValueError as error:
            parser.error(str(error))
        return 0
    is_rank = distributed.launched_by_torchrun()
    code = run_rank(request, train) if is_rank else supervise(request, argv, __file__)
    ignore_late_signals()
    return code


if __name__ == "__main__":
    sys.exit(main())
