"""Puts a run together: settings, data, loaders, ranks, model, the newest checkpoint.

The order matters and is the point of this file: the loader processes are forked before CUDA, the
process group and any thread exist; the checkpoint is found before that, since the loaders start at
its step, and loaded after it; the optimizer exists before the scheduler, and both before their
states are loaded.
"""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

import checkpoint
import config
import data
import dataset_paths
import distributed
import engine
import feeding
import run_folder
import sampling
import schedule
from config import Request, TrainConfig
from distributed import Ranks
from engine import TrainState
from interruption import Interruption
from model import ResNet
from recipes import DEFAULT_RECIPE, RECIPES
from run_log import RunLog
from slots import Batch

TRAIN, EVAL = range(2)  # the streams of a feeder


@dataclass
class Run:
    """One attempt at training: everything that `train` works with."""

    cfg: TrainConfig
    ranks: Ranks
    plan: schedule.Plan
    precision: engine.Precision
    state: TrainState
    network: nn.Module  # state.model, compiled and replicated
    batches: Iterator[Batch]
    feeder: feeding.Feeder
    num_eval_images: int
    origin: dict[str, object]  # what a checkpoint tells of where it comes from
    log: RunLog
    interruption: Interruption
    non_finite: engine.LateCounter
    bad_images: set[str] = field(default_factory=set)  # known to all ranks
    new_bad_images: set[str] = field(default_factory=set)  # seen by this one since
    saved_step: int = -1
    save_due_s: float = 0.0  # on the monotonic clock


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
        cfg = config.resumed(config.from_json(stored | {"run_dir": run_dir}), settings)
    if world_size and not cfg.device_batch_size:
        if cfg.total_batch_size % world_size:
            raise ValueError(
                f"--total_batch_size {cfg.total_batch_size} does not divide over {world_size} "
                "ranks: choose a multiple, or fewer GPUs (CUDA_VISIBLE_DEVICES picks them)"
            )
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
    """Open the data, fork the loaders, join the other ranks, build the model, restore the state.

    Raises ValueError for everything that the user must change.
    """
    run_dir = Path(cfg.run_dir)
    train_set, val_set = data.open_dataset(Path(cfg.data_dir))
    plan = schedule.make_plan(
        len(train_set), cfg.epochs, cfg.total_batch_size, cfg.device_batch_size,
        ranks.world_size, cfg.max_steps,
    )  # fmt: skip
    log = RunLog(
        run_dir,
        plan,
        is_main=ranks.is_main,
        attempt=attempt,
        title=f"{run_dir.name} ({cfg.recipe})",
        price_per_hour=cfg.price_per_hour,
        log_every_s=cfg.log_every_s,
    )
    folder = run_folder.checkpoints_dir(run_dir)
    saved_step = checkpoint.find_newest(folder, log.say, may_rename=ranks.is_main)
    first_step = max(saved_step, 0)
    feeder = start_feeder(cfg, ranks, train_set, val_set)
    batches = feeder.batches(TRAIN, train_keys(cfg, ranks, plan, first_step))

    distributed.connect(ranks)
    engine.set_up_device(ranks.device, cfg.deterministic)
    state = build_state(cfg, ranks, len(train_set.classes), plan)
    origin = origin_of(cfg, plan, train_set, val_set)
    if saved_step >= 0:
        contents = checkpoint.load(checkpoint.step_path(folder, saved_step))
        refuse_other_run(contents, origin, cfg)
        restore(state, contents, log, ranks)
    else:
        log.begin(0, [])
    model = torch.compile(state.model) if cfg.compile else state.model
    run = Run(
        cfg=cfg,
        ranks=ranks,
        plan=plan,
        precision=engine.choose_precision(cfg.amp, ranks.device),
        state=state,
        network=distributed.replicate(model, ranks),
        batches=batches,
        feeder=feeder,
        num_eval_images=len(val_set),
        origin=origin,
        log=log,
        interruption=stop,
        non_finite=engine.LateCounter(ranks.device),
        saved_step=saved_step,
        save_due_s=time.monotonic() + 60 * cfg.save_every_minutes,
    )
    introduce(run, train_set)
    return run


def start_feeder(
    cfg: TrainConfig, ranks: Ranks, train_set: data.Split, val_set: data.Split
) -> feeding.Feeder:
    """Fork the loader processes of the whole run, for training and for every evaluation."""
    on_gpu = ranks.device.type == "cuda"
    return feeding.Feeder(
        [
            data.TrainImages(train_set, cfg.seed, cfg.min_crop_scale, cfg.flip),
            data.EvalImages(val_set, cfg.eval_resize),
        ],
        cfg.device_batch_size,
        max(cfg.image_size, cfg.eval_crop),
        feeding.choose_num_workers(cfg.num_workers, ranks.local_world_size, on_gpu),
        ranks.device,
    )


def image_size_at(cfg: TrainConfig, epoch: int) -> int:
    """Side of the training crops in an epoch, in pixels."""
    return schedule.image_size_at(
        epoch, cfg.start_image_size, cfg.image_size, cfg.grow_start_epoch, cfg.grow_end_epoch,
        cfg.image_size_multiple,
    )  # fmt: skip


def train_keys(
    cfg: TrainConfig, ranks: Ranks, plan: schedule.Plan, first_step: int
) -> Iterator[sampling.BatchKey]:
    """This rank's micro-batches from a step to the end of the run."""
    image_size = partial(image_size_at, cfg)
    return sampling.train_keys(
        plan.num_images, cfg.seed, cfg.total_batch_size, cfg.device_batch_size, image_size,
        first_step, plan.total_steps, ranks.rank, ranks.world_size,
    )  # fmt: skip


def build_state(
    cfg: TrainConfig, ranks: Ranks, num_classes: int, plan: schedule.Plan
) -> TrainState:
    """A model fresh from the seed, and what trains it. Only weights draw from torch's generator."""
    torch.manual_seed(cfg.seed)
    layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
    model = ResNet(cfg.layers, cfg.width, num_classes, cfg.zero_init_gamma)
    model = model.to(ranks.device, memory_format=layout)
    optimizer = engine.build_optimizer(model, cfg)
    scheduler = schedule.one_cycle(optimizer, plan.total_steps, **one_cycle_settings(cfg))
    is_fp16 = engine.choose_precision(cfg.amp, ranks.device).dtype == torch.float16
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=is_fp16)
    epoch_sums = torch.zeros(5, dtype=torch.int64, device=ranks.device)
    return TrainState(
        model, optimizer, scheduler, scaler, engine.build_ema(model, cfg.ema_decay), epoch_sums
    )


def one_cycle_settings(cfg: TrainConfig) -> dict[str, object]:
    names = ("max_lr", "pct_start", "anneal_strategy", "div_factor", "final_div_factor")
    return {name: getattr(cfg, name) for name in (*names, "cycle_momentum")}


def schedule_fingerprint(cfg: TrainConfig, plan: schedule.Plan) -> dict[str, object]:
    """What fixes the learning rate and the images of every step."""
    return one_cycle_settings(cfg) | {
        "epochs": cfg.epochs,
        "total_batch_size": cfg.total_batch_size,
        "device_batch_size": cfg.device_batch_size,
        "num_train_images": plan.num_images,
        "seed": cfg.seed,
    }


def origin_of(
    cfg: TrainConfig, plan: schedule.Plan, train_set: data.Split, val_set: data.Split
) -> dict[str, object]:
    """What a checkpoint tells of where it comes from."""
    return {
        "config": config.to_json(cfg),
        "data": {"train": data.fingerprint(train_set), "val": data.fingerprint(val_set)},
        "schedule": schedule_fingerprint(cfg, plan),
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
    differing = [f"{key} {then[key]} -> {now[key]}" for key in now if then[key] != now[key]]
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


def introduce(run: Run, train_set: data.Split) -> None:
    """Say once what will happen: data, arithmetic, device, and where the run stands."""
    cfg, log, step = run.cfg, run.log, run.state.step
    log.say(
        f"{cfg.data_dir}: {len(train_set)} training and {run.num_eval_images} validation images, "
        f"{len(train_set.classes)} classes"
    )
    if amiss := dataset_paths.shortfall(train_set.classes, len(train_set), run.num_eval_images):
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
