"""What a checkpoint costs during training, and what a resume costs before training continues.

    python benchmarks/save_and_resume.py --data_dir DIR
    python benchmarks/save_and_resume.py --data_dir DIR --mirror /mnt/other

Trains a ResNet50 with momentum and averaged weights (with ImageNet's 1,000 classes, a checkpoint of
307 MB) on an index as large as ImageNet's, 1,281,167 entries in which the images of DIR's
train.pack come again and again.
First, saves: the seconds that the loop stands still for one, and how many seconds longer it and the
steps during the writing take than the same number of steps without. With --mirror, every other save
is copied to a folder in that one, too. Then, in a separate process, a resume at step 4,000 of an
epoch of 5,004: the time from the imports to the end of the first step, listing separately the
building of the model, which a fresh start needs too.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch._dynamo  # takes two seconds, which the first optimizer would take otherwise

sys.path.insert(0, str(Path(__file__).parent.parent))

import start_up

import train
from resnet50.config.train_config import NO_MIRROR, TrainConfig
from resnet50.config.train_flags import Request
from resnet50.records import checkpoint, run_folder, status
from resnet50.run import mirror_start, mirroring
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


@dataclass(frozen=True)
class Save:
    """What one save cost, in seconds."""

    stall_s: float  # of the loop
    wrote_s: float  # until the file was whole, and copied, if it was
    longer_s: float  # that it and the steps after it took than as many steps before
    step_s: float  # that the longest of those steps took longer than the longest before


def settings(
    data_dir: Path, run_dir: Path, args: argparse.Namespace, mirror: str = NO_MIRROR
) -> TrainConfig:
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
        mirror=mirror,
    )


def take_steps(run: run_start.Run, count: int) -> list[float]:
    """Train; returns the seconds of each step."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        batches = list(islice(run.parts.batches, run.parts.plan.micro_batches_per_rank))
        sums = engine.train_step(run.parts.state, batches, run.parts.context)
        engine.advance(run.parts.state, sums)
        found.append(time.perf_counter() - start)
    return found


def measure_save(run: run_start.Run, steps: int, is_copied: bool) -> Save:
    """Train, save, and train on."""
    run.writer.on_written = run.mirror.note if is_copied else lambda step, is_best: None
    without = take_steps(run, steps)
    start = time.perf_counter()
    train.save(run)
    stall = time.perf_counter() - start
    after = take_steps(run, steps)
    run.writer.wait()
    while is_copied and run.mirror.standing():
        time.sleep(0.01)
    wrote = time.perf_counter() - start
    if wrote > stall + sum(after) + 0.1:
        print(f"a save took {wrote:.1f} s, longer than {steps} steps: give more --steps")
    return Save(stall, wrote, stall + sum(after) - sum(without), max(after) - max(without))


def measure_saves(run: run_start.Run, steps: int, rounds: int) -> list[list[Save]]:
    """Of every round a save, and if there is a mirror one that is copied, in turn."""
    take_steps(run, 2)
    kinds = [False, True] if run.mirror else [False]
    return [[measure_save(run, steps, is_copied) for is_copied in kinds] for _ in range(rounds)]


def report_saves(saves: Sequence[Save], what: str) -> None:
    """Print medians."""
    columns = {
        name: statistics.median(getattr(save, name) for save in saves)
        for name in ("stall_s", "wrote_s", "longer_s", "step_s")
    }
    longest = max(save.stall_s + max(save.step_s, 0) for save in saves)
    print(
        f"{what}: the loop stands still for {columns['stall_s']:.2f} s, all is written within "
        f"{columns['wrote_s']:.1f} s, training takes {columns['longer_s']:.2f} s longer: "
        f"{100 * columns['longer_s'] / SAVE_EVERY_S:.2f}% at one in {SAVE_EVERY_S / 60:g} minutes; "
        f"a step at most {columns['step_s']:.2f} s longer (medians of {len(saves)} rounds; no step "
        f"and its save more than {longest:.2f} s)"
    )


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


@contextmanager
def place_for_copies(parent: Path | None) -> Iterator[str]:
    """A new folder in this one, which is removed in the end."""
    if parent is None:
        yield NO_MIRROR
        return
    with tempfile.TemporaryDirectory(dir=parent, prefix="save_and_resume-") as name:
        yield name


def save_again_and_again(cfg: TrainConfig, args: argparse.Namespace) -> run_start.Run:
    """Print what saves cost; returns the run, ended."""
    os.environ[mirror_start.OWNER] = mirror_start.new_owner()
    mirror_start.prepare(cfg, Request({}), os.environ[mirror_start.OWNER], print)
    run = run_start.start(cfg, distributed.read_ranks(), "", interruption.Interruption())
    mirroring.start(run)
    rounds = measure_saves(run, args.steps, args.rounds)
    size = checkpoint.step_path(run.writer.folder, run.saved_step).stat().st_size
    plain, *copied = zip(*rounds, strict=True)
    report_saves(plain, f"a checkpoint of {size / 1e6:.0f} MB")
    for saves in copied:
        report_saves(saves, "one that is copied to --mirror, too")
    mirroring.finish(run, status.INTERRUPTED)
    run.parts.loader.close()
    return run


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
    parser.add_argument("--mirror", type=Path, help="folder on another file system, for copies")
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
        with place_for_copies(args.mirror) as mirror:
            cfg = settings(folder / "data", folder / "run", args, mirror)
            run = save_again_and_again(cfg, args)
        make_resumable(run)
        words = [sys.executable, __file__, f"--data_dir={cfg.data_dir}", f"--resume={cfg.run_dir}"]
        words.append(f"--image_size={args.image_size}")
        told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    resume = json.loads(told.splitlines()[-1])
    cost = resume["start"] + resume["first step"] - resume["model"] - resume["a later step"]
    print(
        f"resume at step {RESUME_AT:,} of {run.parts.plan.steps_per_epoch:,}: "
        + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in resume.items())
        + f"; without model and step {cost:.2f} s\n{run.parts.precision.name}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
