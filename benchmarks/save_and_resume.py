"""What a checkpoint costs during training, and what a resume costs before training continues.

    python benchmarks/save_and_resume.py --data_dir DIR

Trains a ResNet50 of 1,000 classes with momentum and averaged weights (a checkpoint of 307 MB) on an
index as large as ImageNet's, 1,281,167 entries in which the images of DIR's train.pack come again
and again.
First, saves: the seconds that the loop stands still for one, and how many seconds longer it and the
steps during the writing take than the same number of steps without. Then, in a separate process, a
resume at step 4,000 of an epoch of 5,004: the time from the imports to the end of the first step,
listing separately the building of the model, which a fresh start needs too.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
import torch._dynamo  # takes two seconds, which the first optimizer would take otherwise

sys.path.insert(0, str(Path(__file__).parent.parent))

import start_up

import train
from resnet50.config.train_config import TrainConfig
from resnet50.records import checkpoint, run_folder
from resnet50.run import start as run_start
from resnet50.system import interruption
from resnet50.training import build, distributed, engine

NUM_IMAGES, RESUME_AT = 1_281_167, 4000
SAVE_EVERY_S = 300.0  # --save_every_minutes is 5 by default


def make_data(source: Path, folder: Path) -> None:
    """train.pack with ImageNet's number of images, its own again and again; val.pack as it is."""
    folder.mkdir()
    shutil.copy(source / "val.pack", folder)
    start_up.lengthen(source / "train.pack", folder / "train.pack", NUM_IMAGES)


def settings(data_dir: Path, run_dir: Path, args: argparse.Namespace) -> TrainConfig:
    """A run with all that a checkpoint may hold."""
    return TrainConfig(
        data_dir=str(data_dir),
        run_dir=str(run_dir),
        image_size=args.image_size,
        epochs=2,
        total_batch_size=256,
        device_batch_size=32,
        ema_decay=0.999,
        num_workers=1,
        eval_resize_size=args.image_size,
        log_every_steps=10**9,
        spot_watch="off",
    )


def take_steps(run: run_start.Run, count: int) -> float:
    """Train; returns the seconds."""
    start = time.perf_counter()
    for _ in range(count):
        batches = list(islice(run.parts.batches, run.parts.plan.micro_batches_per_rank))
        sums = engine.train_step(run.parts.state, batches, run.parts.context)
        engine.advance(run.parts.state, sums)
    return time.perf_counter() - start


def measure_saves(run: run_start.Run, steps: int, rounds: int) -> list[tuple[float, float, float]]:
    """Of every round, the seconds of a save's stall, of the writing, and added by the save."""
    take_steps(run, 2)
    found = []
    for _ in range(rounds):
        without = take_steps(run, steps)
        start = time.perf_counter()
        train.save(run)
        stall = time.perf_counter() - start
        taken = take_steps(run, steps)
        busy = run.writer.is_busy
        run.writer.wait()
        wrote = time.perf_counter() - start
        found.append((stall, wrote if busy else min(wrote, stall + taken), stall + taken - without))
    return found


def measure_resume(cfg: TrainConfig) -> dict[str, float]:
    """Seconds up to the end of the first step, and those of the model in them."""
    ranks = distributed.read_ranks()
    start = time.perf_counter()
    run = run_start.start(cfg, ranks, "", interruption.Interruption())
    started = time.perf_counter()
    take_steps(run, 1)
    done = time.perf_counter()
    num_classes = len(run.parts.splits.train.classes)
    build.build_state(cfg, ranks, num_classes, run.parts.plan)
    built = time.perf_counter()
    take_steps(run, 1)
    return {
        "start": started - start,
        "first step": done - started,
        "a later step": time.perf_counter() - built,
        "model": built - done,
    }


def make_resumable(run: run_start.Run) -> None:
    """Turn the newest checkpoint into one of step 4,000."""
    folder = run_folder.checkpoints_dir(run.log.run_dir)
    contents = checkpoint.load(checkpoint.step_path(folder, checkpoint.newest_step(folder)))
    contents["step"] = contents["scheduler"]["curve"]["last_epoch"] = RESUME_AT
    checkpoint.save(folder, RESUME_AT, contents)


def main(argv: Sequence[str] | None = None) -> int:
    """Print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with train.pack")
    for name, default in (("image_size", 32), ("steps", 4), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)  # for the separate process
    args = parser.parse_args(argv)
    if args.resume:
        cfg = settings(args.data_dir, args.resume, args)
        print(json.dumps(measure_resume(cfg)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(args.data_dir, folder / "data")
        (folder / "run").mkdir()
        cfg = settings(folder / "data", folder / "run", args)
        ranks = distributed.read_ranks()
        run = run_start.start(cfg, ranks, "", interruption.Interruption())
        saves = measure_saves(run, args.steps, args.rounds)
        stall, wrote, longer = (statistics.median(column) for column in zip(*saves, strict=True))
        size = checkpoint.step_path(run.writer.folder, run.saved_step).stat().st_size
        make_resumable(run)
        run.parts.loader.close()
        words = [sys.executable, __file__, f"--data_dir={cfg.data_dir}", f"--resume={cfg.run_dir}"]
        words.append(f"--image_size={args.image_size}")
        told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    resume = json.loads(told.splitlines()[-1])
    cost = resume["start"] + resume["first step"] - resume["model"] - resume["a later step"]
    print(
        f"a checkpoint of {size / 1e6:.0f} MB: the loop stands still for {stall:.2f} s, the file "
        f"is written within {wrote:.1f} s, training takes {longer:.2f} s longer: "
        f"{100 * longer / SAVE_EVERY_S:.2f}% at one in {SAVE_EVERY_S / 60:g} minutes (medians of "
        f"{args.rounds} rounds)\nresume at step {RESUME_AT:,} of {run.plan.steps_per_epoch:,}: "
        + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in resume.items())
        + f"; without model and step {cost:.2f} s\n{run.precision.name}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
