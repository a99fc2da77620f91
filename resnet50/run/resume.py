"""What a checkpoint of a run holds, and how a run resumes from one."""

import dataclasses
from typing import TYPE_CHECKING

from torch import Tensor

from resnet50.config.train_config import TrainConfig
from resnet50.data import splits
from resnet50.records import checkpoint, run_folder
from resnet50.run import budget_events
from resnet50.training import build
from resnet50.training.build import Parts
from resnet50.training.engine import TrainState
from resnet50.training.plan import Plan

if TYPE_CHECKING:
    from resnet50.run.start import Run


def checkpoint_contents(run: "Run", epoch_sums: Tensor) -> dict[str, object]:
    """Tensors and plain values, from which `resume_from` resumes bit for bit.

    epoch_sums: of all ranks; those in the state are this rank's only.
    """
    state = run.parts.state
    return {
        # Where it comes from, for resuming, evaluating and publishing it
        "config": run.provenance["config"],  # every setting of the run
        "data": run.provenance["data"],  # fingerprint of both splits: a run cannot change them
        "schedule": run.provenance["schedule"],  # what determines the rate and images of every step
        "classes": run.provenance["classes"],  # names, in the order of the logits
        "budget": run.budget,  # what the settings were planned from; None without a budget
        "commit": run.provenance["commit"],  # of the code that wrote it, -dirty with local changes
        "device": run.parts.ranks.device.type,  # what the run computes on, and
        "precision": run.parts.precision.name,  # in: --amp auto depends on the machine
        # What a step changes
        "step": state.step,  # steps done: the number of the next batch
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),  # momentum, and the current learning rate
        "scheduler": state.learning_rate.state_dict(),  # what determines the next rates
        "scaler": state.scaler.state_dict(),  # of fp16's gradients; empty in other precisions
        "ema": None if state.ema is None else state.ema.module.state_dict(),  # averaged weights
        "num_averaged": 0 if state.ema is None else state.ema.num_updates,
        "events": [budget_events.as_values(event) for event in run.parts.plan.events],
        "pace": run.controller.to_json() if run.controller else None,  # what a budget has learned
        # What the run has measured
        "epoch_sums": epoch_sums,  # losses and hits since the epoch began
        "rows": run.results.rows,  # of metrics.csv
        "best": run.results.best,  # the row of the best validation top-1
    }


def provenance(parts: Parts) -> dict[str, object]:
    """A checkpoint's record of where it comes from; constant within an attempt."""
    return {
        "config": parts.cfg.to_json(),
        "data": {
            "train": splits.fingerprint(parts.splits.train),
            "val": splits.fingerprint(parts.splits.val),
        },
        "schedule": schedule_fingerprint(parts.cfg, parts.plan),
        "classes": list(parts.splits.train.classes),
        "commit": run_folder.commit(),
    }


def schedule_fingerprint(cfg: TrainConfig, plan: Plan) -> dict[str, object]:
    """What determines the learning rate and the images of every step."""
    return dataclasses.asdict(build.learning_rate_settings(cfg, plan)) | {
        "epochs": cfg.epochs,
        "total_batch_size": cfg.total_batch_size,
        "device_batch_size": cfg.device_batch_size,
        "num_train_images": plan.num_images,
        "seed": cfg.seed,
    }


def resume_from(run: "Run", contents: dict) -> None:
    """Put a checkpoint's state in place. Raises ValueError if it belongs to another run."""
    state, results = run.parts.state, run.results
    # Before anything is loaded: the state of another run would load without an error.
    refuse_other_run(contents, run.provenance, run.parts.cfg)
    restore(state, contents)
    for text in changes_of_machine(contents, run.parts):
        run.log.event(state.step, text)
    results.rows = list(contents["rows"])
    if run.controller and contents.get("pace"):
        run.controller.learn(contents["pace"])
    # The sums are over all ranks: one rank takes them, the others start at zero.
    if not run.parts.ranks.is_main:
        return
    state.epoch_sums.copy_(contents["epoch_sums"])
    if results.best and results.best["step"] == state.step:
        # A kill between writing the checkpoint and linking it leaves best.pt out of date.
        folder = run_folder.checkpoints_dir(run.log.run_dir)
        checkpoint.mark_best(checkpoint.step_path(folder, state.step))


def restore(state: TrainState, contents: dict) -> None:
    """Load a checkpoint into a state that was just built.

    Building a scheduler resets the optimizer's learning rate, so both must exist by now.
    """
    # The step is all that the data need: their order and their augmentation are functions of it.
    state.step = contents["step"]
    state.model.load_state_dict(contents["model"])
    state.optimizer.load_state_dict(contents["optimizer"])
    state.learning_rate.load_state_dict(contents["scheduler"])
    # Empty without fp16: if fp16 follows bf16, as on an older GPU, its scale starts over.
    if contents["scaler"]:
        state.scaler.load_state_dict(contents["scaler"])
    # The average is not a copy of the weights: started anew, it would forget the run so far.
    if state.ema is not None:
        state.ema.module.load_state_dict(contents["ema"])
        state.ema.num_updates = contents["num_averaged"]
    assert state.learning_rate.lr == state.lr, "scheduler and optimizer disagree"


def changes_of_machine(contents: dict, parts: Parts) -> list[str]:
    """What differs from the previous attempt because it ran on another machine."""
    texts = []
    now = parts.ranks.device.type
    if (then := contents.get("device", now)) != now:
        texts.append(f"trained on {then} up to here, on {now} from here on")
    # Older checkpoints do not name their precision, but only fp16 has a gradient scaler's state.
    unnamed = "fp16" if contents["scaler"] else "no gradient scaling"
    then = contents.get("precision", unnamed)
    now = parts.precision.name
    if then != now and (then != "no gradient scaling" or now == "fp16"):
        begins = "; its gradient scale starts over" if now == "fp16" else ""
        texts.append(
            f"trained in {then} up to here, in {now} from here on (--amp {parts.cfg.amp} on this "
            f"machine){begins}"
        )
    return texts


def refuse_other_run(contents: dict, provenance: dict, cfg: TrainConfig) -> None:
    """Raise ValueError if a checkpoint belongs to other data or another schedule."""
    for split, now in provenance["data"].items():
        then = contents["data"][split]
        if then != now:
            raise ValueError(
                f"--data_dir {cfg.data_dir} is not the data of the run in {cfg.run_dir}: its "
                f"{split} split has {now['num_images']} images in {now['num_classes']} classes, "
                f"the run's had {then['num_images']} in {then['num_classes']}, or the file "
                "names or packing options differ. Give the same data, or a new --run_dir"
            )
    # Settings were compared earlier (run/resolve.py); this catches a config.json that was edited,
    # and data of another size, with which epochs have another length.
    then, now = contents["schedule"], provenance["schedule"]
    differing = [f"{key} {then.get(key)} -> {now[key]}" for key in now if then.get(key) != now[key]]
    if differing:
        raise ValueError(
            f"the checkpoint in {cfg.run_dir} follows another schedule ({', '.join(differing)}): "
            "restore its config.json, or give a new --run_dir"
        )
