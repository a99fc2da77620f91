"""A run from its settings to its first step: data, checkpoint, batch size, parts, state, log.

The order, as `start` has it:

1. The data are opened and the newest whole checkpoint is found.
2. All ranks agree on settings, data and checkpoint, before anything large is made.
3. --device_batch_size auto is tried in a separate process, before this one touches the GPU; so is
   what a budget needs to know of this machine, and then its steps are chosen.
4. The parts are built (training/build.py); their loaders begin to work at that checkpoint's step.
5. The threads start: only now, since the loaders were forked.
6. --max_lr auto is measured, with the parts that will train.
7. The checkpoint is loaded, or the run begins.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import dataset_paths
from resnet50.config.fields import AUTO
from resnet50.config.train_config import TrainConfig
from resnet50.data import class_folders
from resnet50.data.batch import Batch
from resnet50.data.splits import deep_gray_line, open_dataset, passed_over, unused_line
from resnet50.records import checkpoint, run_folder
from resnet50.records.checkpoint_writer import CheckpointWriter
from resnet50.records.log import RunLog
from resnet50.records.paid_clock import PaidClock
from resnet50.records.results import Results
from resnet50.run import (
    budget_events,
    budget_start,
    consistency,
    initial_weights,
    resume,
    spot_watch,
)
from resnet50.run.heartbeat import Heartbeat
from resnet50.run.mirror import Mirror
from resnet50.run.steering import Controller
from resnet50.system import files
from resnet50.system.interruption import Interrupted, Interruption
from resnet50.training import batch_fit, build, distributed
from resnet50.training.build import Parts
from resnet50.training.device import LateCounter, is_emulated
from resnet50.training.distributed import Ranks


class Ended(Exception):  # noqa: N818 (not always an error)
    """The run cannot continue; the state it ended in (records/status.py) is the only argument."""


@dataclass
class Run:
    """One attempt at training: everything that train.py works with."""

    parts: Parts
    provenance: dict[str, object]  # a checkpoint's record of where it comes from
    results: Results
    log: RunLog
    interruption: Interruption
    writer: CheckpointWriter
    heartbeat: Heartbeat
    non_finite: LateCounter
    saved_step: int  # of the most recently started save; -1: none, or it failed
    save_due_s: float  # on the monotonic clock
    bad_images: set[str] = field(default_factory=set)  # known to all ranks
    new_bad_images: set[str] = field(default_factory=set)  # seen by this rank since
    budget: dict[str, object] | None = None  # what it was planned from, for config.json
    controller: Controller | None = None  # of a budget, on rank 0
    steer_due_s: float = -float("inf")  # on the monotonic clock
    steer_warned_s: float = -float("inf")  # the last time, on the same
    mirror: Mirror | None = None  # of rank 0, with --mirror

    def note_bad_images(self, batches: Iterable[Batch]) -> None:
        """Remember the undecodable files of these batches until all ranks are told of them."""
        for batch in batches:
            self.new_bad_images |= set(batch.bad_images) - self.bad_images

    def schedule_save(self, delay_s: float) -> None:
        """Make a checkpoint due in this many seconds."""
        self.save_due_s = time.monotonic() + delay_s

    def save_sooner(self, share: float) -> None:
        """Make the next checkpoint due as soon as saving takes no more than this share of the time:
        on a host with few cores, training is slower while a file is being written."""
        self.save_due_s = min(self.save_due_s, self.writer.begun_s + self.writer.took_s / share)


def start(
    cfg: TrainConfig,
    ranks: Ranks,
    attempt: str,
    stop: Interruption,
    paid_clock: PaidClock | None = None,
    given: Mapping[str, object] | None = None,
) -> Run:
    """Do everything that comes before the first step, in the order above.

    paid_clock: the run's, on rank 0; None for one that begins when the log does; given: the options
    that were given by hand. Raises ValueError if the user must change something, and Interrupted.
    """
    # There is no log before the plan is known.
    say = printer(ranks)
    folder = run_folder.checkpoints_dir(Path(cfg.run_dir))
    splits = open_dataset(Path(cfg.data_dir), cfg.upright)
    cfg = replace(cfg, upright=splits.train.upright)  # records what auto resolved to
    saved_step = checkpoint.recover_newest(folder, say, may_rename=ranks.is_main)
    # Hosts may read copies of the data and mount folders in other places: differences between them
    # must show now, not in a different model.
    saved_step = consistency.check(cfg, ranks, attempt, splits, saved_step)
    cfg = batch_fit.fit_batch_size(cfg, ranks, stop, say)
    words = (given or {}, ranks, splits, paid_clock, stop, say)
    cfg, budget = budget_start.prepare(cfg, *words)
    # The loaders start right at the checkpoint's step, so that a resume at step 4,000 of an epoch
    # decodes nothing of the 4,000 steps before it. But if a range test comes first, they wait for
    # its batches.
    first_step = None if cfg.max_lr == AUTO else max(saved_step, 0)
    # A resume has its own weights: the file of --init_from need no longer exist.
    weights = None
    init_lines = []
    if saved_step < 0:
        weights, init_lines = initial_weights.read(cfg, splits.train.classes)
    events = budget_events.at_start(cfg, ranks, saved_step, say)
    parts = build.set_up(cfg, ranks, splits, first_step, weights, events)
    # One thread on every host, since EC2 may reclaim any of them.
    if ranks.local_rank == 0:
        spot_watch.start(cfg.spot_watch, stop.request_stop, stop.request_save)
    results = Results()
    words = {"is_main": ranks.is_main, "attempt": attempt, "paid_clock": paid_clock}
    log = RunLog(cfg, parts.plan, results, **words)
    if cfg.max_lr == AUTO:
        find_max_lr(parts, log, stop)
    run = Run(
        parts=parts,
        provenance=resume.provenance(parts),
        results=results,
        log=log,
        interruption=stop,
        writer=CheckpointWriter(folder, cfg.keep_checkpoints, saved_step),
        heartbeat=Heartbeat(log.run_dir, ranks.is_main, paid_clock),
        non_finite=LateCounter(ranks.device),
        saved_step=saved_step,
        save_due_s=time.monotonic() + 60 * cfg.save_every_minutes,
        budget=budget,
    )
    begin(run, init_lines)
    return run


def begin(run: Run, init_lines: Iterable[str]) -> None:
    """Load the checkpoint, if there is one, and make folder and log ready for the first step.

    init_lines: what to say of --init_from.
    """
    log, folder, plan = run.log, run.writer.folder, run.parts.plan
    if run.parts.ranks.is_main:
        if run.budget is not None:
            run.controller = budget_start.make_controller(run.parts.cfg, plan, run.budget)
        make_ready(folder, log)
        if plan.num_steps:
            budget_events.write(log.run_dir, plan.events)
    # Last, over the weights that were just built: loading checks that everything has its place.
    if run.saved_step >= 0:
        path = checkpoint.step_path(folder, run.saved_step)
        resume.resume_from(run, checkpoint.load(path))
    log.begin(run.parts.state.step)
    for line in init_lines:
        log.event(0, line)
    log_start(run)


def make_ready(folder: Path, log: RunLog) -> None:
    """Prepare the folder of checkpoints, and warn if its disk cannot guarantee durability."""
    checkpoint.make_folder(folder)
    best = folder / checkpoint.BEST
    if best.exists() and not checkpoint.has_trailer(best):
        log.say(f"{best} is not a whole checkpoint: renamed to {checkpoint.put_aside(best).name}")
    if problem := files.folder_sync_problem(folder):
        log.event(
            0,
            f"warning: the disk of {folder} cannot sync a folder ({problem}): checkpoints survive "
            "a kill, but a power cut may cost the newest of them",
        )


def printer(ranks: Ranks) -> Callable[[str], None]:
    """How a rank prints before it has a log: rank 0 does, the others stay silent."""

    def say(text: str) -> None:
        if ranks.is_main:
            print(text, flush=True)

    return say


def find_max_lr(parts: Parts, log: RunLog, stop: Interruption) -> None:
    """Find the rate for --max_lr auto, and build what depends on it. Raises Interrupted."""
    # Here, since torch-lr-finder imports pyplot: every other run starts 0.6 s sooner.
    from resnet50.training import range_test

    folder = log.run_dir / "lr_finder"
    try:
        found = range_test.find_max_lr(parts, range_test.Range(), folder, stop, log.say)
    except Interrupted:
        acknowledge(stop, log, parts.ranks, step=0)
        raise
    # Into the settings, and so into config.json: a resume uses the number without a test.
    build.set_max_lr(parts, found.recommended)
    log.event(0, f"--max_lr auto: {found.recommended:g} ({found}); curve in {folder}")
    for warning in found.warnings:
        log.event(0, f"warning: {warning}")


def acknowledge(stop: Interruption, log: RunLog, ranks: Ranks, step: int) -> None:
    """Log why any rank was asked to save or stop, and clear the request to save. Every rank must
    call it."""
    # Gathered from all ranks and sorted: a notice that every host gets is one line.
    for reason in sorted(distributed.gather_names(stop.acknowledge_save(), ranks)):
        log.event(step, reason)


def log_start(run: Run) -> None:
    """Print once what will happen: data, arithmetic, device, and the step it starts from."""
    parts, log, step = run.parts, run.log, run.parts.state.step
    cfg, (train_set, val_set) = parts.cfg, parts.splits
    log.say(
        f"{cfg.data_dir}: {len(train_set)} training and {len(val_set)} validation images, "
        f"{len(train_set.classes)} classes: {class_folders.described(train_set.classes)}"
    )
    not_used = unused_line(train_set, val_set), *passed_over(Path(cfg.data_dir), parts.splits)
    for line in filter(None, (*not_used, deep_gray_line(train_set))):
        log.say(line)
    # Some mirrors of ImageNet lack hundreds of images, which changes what validation measures.
    if missing := dataset_paths.missing_images(train_set.classes, len(train_set), len(val_set)):
        log.say(f"warning: {missing}: results cannot be compared with published ones")
    log.say(parts.plan.describe())
    if events := parts.plan.events:
        often = "once" if len(events) == 1 else f"{len(events)} times"
        log.say(
            f"the schedule's end was moved {often}: it ends at step {events[-1].end_step} instead "
            f"of {parts.plan.total_steps}"
        )
    log.say(
        f"{parts.ranks.device.type}, {parts.precision.name}, learning rate up to {cfg.max_lr:g}, "
        f"run folder {cfg.run_dir}"
    )
    if is_emulated(parts.precision):
        log.say("warning: this GPU has no bf16 and emulates it, many times slower than its fp16")
    if unused := distributed.unused_gpus(parts.ranks):
        log.say(f"warning: {unused} GPUs stay idle: torchrun --nproc_per_node=gpu uses them all")
    if run.saved_step >= 0:
        log.event(step, f"resuming at step {step} of {parts.plan.stop_step}")
