"""Puts a run together: settings, what is found out at its start, trainer, the newest checkpoint.

The checkpoint is found before the trainer is set up, since its loaders start at that step, and
loaded after it.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import agreement
import batch_fit
import checkpoint
import data
import dataset_paths
import distributed
import engine
import range_test
import resuming
import run_folder
import schedule
import spot_watch
import stored_config
import tensorboard_log
import trainer
from checkpoint_writer import CheckpointWriter
from command_line import Request
from config import TrainConfig
from distributed import Ranks
from engine import TrainState
from heartbeat import Heartbeat
from interruption import Interrupted, Interruption
from recipes import DEFAULT_RECIPE, RECIPES
from run_log import RunLog
from settings import AUTO
from slots import Batch
from trainer import Trainer


@dataclass
class Run(Trainer):
    """One attempt at training: everything that `train` works with."""

    origin: dict[str, object]  # what a checkpoint tells of where it comes from
    log: RunLog
    interruption: Interruption
    non_finite: engine.LateCounter
    writer: CheckpointWriter
    heartbeat: Heartbeat
    bad_images: set[str] = field(default_factory=set)  # known to all ranks
    new_bad_images: set[str] = field(default_factory=set)  # seen by this one since
    saved_step: int = -1
    save_due_s: float = 0.0  # on the monotonic clock

    def note_bad_images(self, batches: Iterable[Batch]) -> None:
        """Remember the undecodable files of these batches until all ranks hear of them."""
        for batch in batches:
            self.new_bad_images |= set(batch.bad_images) - self.bad_images

    def log_requests(self) -> None:
        """Log what asked for the save that follows; every rank must call it."""
        log_requests(self.interruption, self.log, self.ranks, self.state.step)


def resolve(request: Request, world_size: int = 0) -> TrainConfig:
    """The settings of the run: those in its folder, else its recipe's, and the flags over them.

    Without any flag that is the newest unfinished run, else the default recipe's. world_size: the
    number of ranks, where it is known, to settle the batch-norm group of a new run.
    Raises ValueError for settings that a resume cannot change.
    """
    settings = dict(request.settings)
    recipe = settings.get("recipe", DEFAULT_RECIPE)
    newest = None if settings else run_folder.newest_unfinished()
    run_dir = str(settings.pop("run_dir", newest or run_folder.RUNS / recipe))
    if Path(run_dir).exists() and not Path(run_dir).is_dir():
        raise ValueError(f"--run_dir {run_dir} is a file: give a folder, new or of a run")
    stored = None if request.fresh else run_folder.read_settings(Path(run_dir))
    if stored is None:
        settings = {**RECIPES[recipe].settings, **settings, "recipe": recipe, "run_dir": run_dir}
        cfg = TrainConfig(**settings)
    else:
        before = stored_config.from_json(stored | {"run_dir": run_dir})
        cfg = resuming.resumed(before, settings)
    if cfg.tensorboard:
        tensorboard_log.check_installed()
    if world_size and cfg.device_batch_size in (0, AUTO):
        if cfg.total_batch_size % world_size:
            raise ValueError(
                f"--total_batch_size {cfg.total_batch_size} does not divide over {world_size} "
                "ranks: choose a multiple, or fewer GPUs (CUDA_VISIBLE_DEVICES picks them)"
            )
        if cfg.device_batch_size != AUTO:
            device_batch_size = cfg.total_batch_size // world_size
            cfg = dataclasses.replace(cfg, device_batch_size=device_batch_size)
    return cfg


def with_data(cfg: TrainConfig) -> TrainConfig:
    """The settings with a data folder that is there. Raises ValueError if there is none."""
    if not cfg.data_dir:
        cfg = dataclasses.replace(cfg, data_dir=str(dataset_paths.find_data_dir()))
    if not Path(cfg.data_dir).is_dir():
        raise ValueError(f"--data_dir {cfg.data_dir}: no such folder")
    return cfg


def start(cfg: TrainConfig, ranks: Ranks, attempt: str, stop: Interruption) -> Run:
    """Open the data, find what is to be found out, put the trainer together, restore the state.

    Raises ValueError for everything that the user must change, and Interrupted.
    """
    run_dir, say = Path(cfg.run_dir), say_on(ranks)
    folder = run_folder.checkpoints_dir(run_dir)
    train_set, val_set = data.open_dataset(Path(cfg.data_dir))
    saved_step = checkpoint.find_newest(folder, say, may_rename=ranks.is_main)
    saved_step = agreement.check(cfg, ranks, attempt, train_set, val_set, saved_step)
    is_fresh = saved_step < 0
    cfg = batch_fit.settle(cfg, ranks, stop, say)
    plan = trainer.make_plan(cfg, train_set, ranks)
    # A range test comes first, if there is one: then the loaders wait for its batches.
    first_step = plan.total_steps if cfg.max_lr == AUTO else max(saved_step, 0)
    keys = trainer.train_keys(cfg, ranks, plan, first_step, plan.total_steps)
    weights = initial_weights(cfg) if is_fresh else None
    parts = trainer.set_up(cfg, ranks, train_set, val_set, plan, keys, weights)
    if ranks.local_rank == 0:  # a thread: only now that the loaders are forked
        spot_watch.start(cfg.spot_watch, stop.request_stop, stop.request_save)
    log = RunLog(
        run_dir,
        plan,
        is_main=ranks.is_main,
        attempt=attempt,
        title=f"{run_dir.name} ({cfg.recipe})",
        price_per_hour=cfg.price_per_hour,
        log_every_s=cfg.log_every_s,
        max_minutes=cfg.max_minutes,
        image_size_at=partial(trainer.image_size_at, cfg),
        tensorboard=cfg.tensorboard,
    )
    if parts.cfg.max_lr == AUTO:
        find_max_lr(parts, log, stop)
    run = Run(
        **vars(parts),
        origin=origin_of(parts),
        log=log,
        interruption=stop,
        non_finite=engine.LateCounter(ranks.device),
        writer=CheckpointWriter(folder, cfg.keep_checkpoints),
        heartbeat=Heartbeat(run_dir, ranks.is_main),
        saved_step=saved_step,
        save_due_s=time.monotonic() + 60 * cfg.save_every_minutes,
    )
    if is_fresh:
        log.begin(0, [])
    else:
        contents = checkpoint.load(checkpoint.step_path(folder, saved_step))
        refuse_other_run(contents, run.origin, cfg)
        restore(run.state, contents, log, ranks)
    introduce(run)
    return run


def initial_weights(cfg: TrainConfig) -> dict | None:
    """What --init_from holds; None without it. Raises ValueError naming both."""
    if not cfg.init_from:
        return None
    return checkpoint.load_weights_file(Path(cfg.init_from), "--init_from")


def say_on(ranks: Ranks) -> Callable[[str], None]:
    """How a rank says something before it has a log: the first one prints, the others do not."""

    def say(text: str) -> None:
        if ranks.is_main:
            print(text, flush=True)

    return say


def find_max_lr(parts: Trainer, log: RunLog, stop: Interruption) -> None:
    """Measure --max_lr auto, put it into the settings, and begin with the training's batches."""
    folder = Path(parts.cfg.run_dir) / "lr_finder"
    try:
        found = range_test.find_max_lr(parts, range_test.Range(), folder, stop, log.say)
    except Interrupted:
        log_requests(stop, log, parts.ranks, step=0)
        raise
    parts.cfg = dataclasses.replace(parts.cfg, max_lr=found.recommended)
    trainer.settle_learning_rate(parts)
    log.event(0, f"--max_lr auto: {found.recommended:g} ({found}); curve in {folder}")
    for warning in found.warnings:
        log.event(0, f"warning: {warning}")
    keys = trainer.train_keys(parts.cfg, parts.ranks, parts.plan, 0, parts.plan.total_steps)
    parts.batches = parts.feeder.batches(trainer.TRAIN, keys)


def log_requests(stop: Interruption, log: RunLog, ranks: Ranks, step: int) -> None:
    """Log what asked any rank to save or stop, and forget it; every rank must call it."""
    for reason in sorted(distributed.gather_names(stop.take_reasons(), ranks)):
        log.event(step, reason)


def schedule_fingerprint(cfg: TrainConfig, plan: schedule.Plan) -> dict[str, object]:
    """What fixes the learning rate and the images of every step."""
    return dataclasses.asdict(trainer.learning_rate_settings(cfg, plan)) | {
        "epochs": cfg.epochs,
        "total_batch_size": cfg.total_batch_size,
        "device_batch_size": cfg.device_batch_size,
        "num_train_images": plan.num_images,
        "seed": cfg.seed,
    }


def origin_of(parts: Trainer) -> dict[str, object]:
    """What a checkpoint tells of where it comes from."""
    splits = {"train": parts.train_set, "val": parts.val_set}
    return {
        "config": stored_config.to_json(parts.cfg),
        "data": {name: data.fingerprint(split) for name, split in splits.items()},
        "schedule": schedule_fingerprint(parts.cfg, parts.plan),
        "classes": list(parts.train_set.classes),
        "commit": run_folder.commit(),
    }


def refuse_other_run(contents: dict, origin: dict, cfg: TrainConfig) -> None:
    """Raise ValueError if a checkpoint belongs to other data or another schedule."""
    for split, now in origin["data"].items():
        then = contents["data"][split]
        if then != now:
            raise ValueError(
                f"--data_dir {cfg.data_dir} is not the data of the run in {cfg.run_dir}: its "
                f"{split} split has {now['num_images']} images in {now['num_classes']} classes, "
                f"the run's had {then['num_images']} in {then['num_classes']}, or other file "
                "names, or it was packed otherwise. Give the same data, or a new --run_dir"
            )
    then, now = contents["schedule"], origin["schedule"]
    differing = [f"{key} {then.get(key)} -> {now[key]}" for key in now if then.get(key) != now[key]]
    if differing:
        raise ValueError(
            f"the checkpoint in {cfg.run_dir} follows another schedule ({', '.join(differing)}): "
            "restore its config.json, or give a new --run_dir"
        )


def restore(state: TrainState, contents: dict, log: RunLog, ranks: Ranks) -> None:
    """Put a checkpoint's state in place; rank 0 takes its epoch sums, the others start at zero."""
    state.load_state_dict(contents)
    log.begin(state.step, contents["rows"])
    if not ranks.is_main:
        return
    state.epoch_sums.copy_(contents["epoch_sums"])
    if log.best and log.best["step"] == state.step:
        # A kill between writing the checkpoint and linking it would have left the link behind.
        folder = run_folder.checkpoints_dir(log.run_dir)
        checkpoint.mark_best(checkpoint.step_path(folder, state.step))


def introduce(run: Run) -> None:
    """Say once what will happen: data, arithmetic, device, and where the run stands."""
    cfg, log, step, train_set = run.cfg, run.log, run.state.step, run.train_set
    log.say(
        f"{cfg.data_dir}: {len(train_set)} training and {len(run.val_set)} validation images, "
        f"{len(train_set.classes)} classes"
    )
    if amiss := dataset_paths.shortfall(train_set.classes, len(train_set), len(run.val_set)):
        log.say(f"warning: {amiss}: results will not compare with published ones")
    log.say(run.plan.describe())
    log.say(
        f"{run.ranks.device.type}, {run.precision.name}, learning rate up to {cfg.max_lr:g}, "
        f"run folder {cfg.run_dir}"
    )
    if unused := distributed.unused_gpus(run.ranks):
        log.say(f"warning: {unused} GPUs stay idle: torchrun --nproc_per_node=gpu uses all")
    if run.saved_step >= 0:
        log.event(step, f"resuming at step {step} of {run.plan.stop_step}")


def explain_no_memory(run: Run, error: RuntimeError) -> str:
    """State of a run whose first step since its last checkpoint needs more memory than there is.

    Raises the error again if it is another one, or if steps went well before: then something else
    took the memory, and the supervisor starts again from the checkpoint.
    """
    cfg, step, ranks = run.cfg, run.state.step, run.ranks
    if not batch_fit.is_out_of_memory(error) or step != max(run.saved_step, 0):
        raise error
    what = (
        f"error: not enough memory on {ranks.device} for step {step + 1}: --device_batch_size "
        f"{cfg.device_batch_size} of {trainer.image_size_at(cfg, int(run.plan.epoch_of(step)))} px "
        f"({str(error).splitlines()[0]}). Does another program take it (nvidia-smi)? Else begin "
        "a new run with --device_batch_size auto"
    )
    run.log.event(step, what)
    if ranks.world_size > 1:  # the others wait for this rank until torchrun ends them
        time.sleep(1)  # until rank 0 waits too, and writes no status.json of its own any more
        status = {"state": run_folder.CONFIG_ERROR, "attempt": run.log.attempt, "message": what}
        run_folder.write_status(run.log.run_dir, **status)
        print(what, file=sys.stderr, flush=True)
        os._exit(run_folder.EXIT_CODES[run_folder.CONFIG_ERROR])
    return run_folder.CONFIG_ERROR
