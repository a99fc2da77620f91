"""What a GPU makes of the steps of a recipe whose crops grow, in ten minutes.

    python benchmarks/gpu_day.py --data_dir DIR --json gpu_day.json

For the day that you have one. At every size of the crops: train.py's step on a batch that is in
the device's memory, and together with the loader, with the share of that time in which it waited
for data. All of that for the step as it is, compiled (--compile), and recorded as a CUDA graph.
Also the loader alone, and the first step of a size, in which cuDNN looks for kernels, torch.compile
compiles, and a graph is recorded. DIR holds a pack, such as of photo_corpus.py's pictures.

How long each measurement takes follows from --minutes. What would begin too late is left out, and
what fails is named, below the table and in the JSON; only compiling that has begun is not cut
short. Figures are printed as they come. A CPU has no CUDA graphs; all else is the same there.
"""

import argparse
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.data.batch import Batch
from resnet50.system import limits, outputs
from resnet50.training import build, device, engine, throughput
from resnet50.training.engine import StepContext
from resnet50.training.plan import ONE_SIZE

SIZES = (88, 96, 128, 160, 176, 224)
EAGER, COMPILED, GRAPH = "eager", "compiled", "CUDA graph"
WARM_UP_STEPS = 3  # before a graph is recorded, as torch's notes on CUDA graphs have it
MEASURED = 0.5  # share of the minutes; the rest is for starting, compiling and recording
PER_SIZE = {EAGER: 3, COMPILED: 2, GRAPH: 2}  # measurements: alone, with the loader; the loader
Step = Callable[[Sequence[Batch]], object]


@dataclass
class Day:
    """What is measured, and until when: a time of time.monotonic."""

    bench: throughput.Bench
    sizes: Sequence[int]
    ends_at: float

    def seconds_for(self, mode: str) -> float:
        """Of one size; a measurement takes as long again to warm up."""
        return 2 * self.bench.seconds * PER_SIZE[mode]


class RecordedStep:
    """train.py's step as a CUDA graph, recorded anew for every size, and then only replayed.

    The learning rate stays what it was at the recording, and so does whether the step is one that
    updates averaged weights.
    """

    def __init__(self, bench: throughput.Bench) -> None:
        self._bench = bench
        self._inputs: Sequence[Batch] = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._replays: deque[torch.cuda.Event] = deque(maxlen=2)

    def __call__(self, micro_batches: Sequence[Batch]) -> None:
        if not self._inputs or self._inputs[0].images.shape != micro_batches[0].images.shape:
            self._record(micro_batches)
        # A graph reads and writes the same memory every time.
        for own, given in zip(self._inputs, micro_batches, strict=True):
            for mine, other in zip(own[:3], given[:3], strict=True):
                mine.copy_(other)
        # No more than two ahead of the device: there would be thousands when the time is up.
        if len(self._replays) == 2:
            self._replays[0].synchronize()
        self._graph.replay()
        replayed = torch.cuda.Event()
        replayed.record()
        self._replays.append(replayed)

    def _record(self, micro_batches: Sequence[Batch]) -> None:
        state, context = self._bench.parts.state, self._bench.parts.context
        self._graph, self._inputs = None, ()  # its memory is free again
        copies = [Batch(*(tensor.clone() for tensor in batch[:3]), []) for batch in micro_batches]
        # Kernels are chosen and the optimizer's state is made now: neither can be recorded.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                engine.train_step(state, copies, context)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            engine.train_step(state, copies, context)
        self._graph, self._inputs = graph, copies


def step_of(mode: str, bench: throughput.Bench) -> Step:
    """A training step. Raises ValueError if there is no compiler."""
    parts = bench.parts
    if mode == GRAPH:
        return RecordedStep(bench)
    network = parts.network
    if mode == COMPILED:
        device.check_compiler(parts.ranks.device)
        network = torch.compile(parts.state.model)
    context = StepContext(parts.cfg, parts.precision, parts.ranks, network)

    def step(micro_batches: Sequence[Batch]) -> None:
        engine.advance(parts.state, engine.train_step(parts.state, micro_batches, context))

    return step


def seconds_of(step: Step, micro_batches: Sequence[Batch], on: torch.device) -> float:
    """How long one step takes, until the device is done."""
    synchronize(on)
    start = time.perf_counter()
    step(micro_batches)
    synchronize(on)
    return time.perf_counter() - start


def synchronize(on: torch.device) -> None:
    if on.type == "cuda":
        torch.cuda.synchronize(on)


def measure_step(day: Day, step: Step, size: int) -> dict[str, float]:
    """The first step of a size, the rate of many, and that of many together with the loader."""
    bench, per_step = day.bench, day.bench.parts.plan.num_micro_batches
    batch = throughput.synthetic_batch(bench, size)
    first_s = seconds_of(step, [batch] * per_step, bench.parts.ranks.device)
    alone = throughput.measure(bench, repeat(batch), per_step, step)
    both = measure_loaded(bench, size, step)
    return {
        "first_step_s": first_s,
        "images_per_s": alone.images_per_s,
        "step_s": per_step * len(batch.labels) / alone.images_per_s,
        "both_images_per_s": both.images_per_s,
        "data_wait_pct": both.wait_pct,
    }


def measure_loaded(bench: throughput.Bench, size: int, step: Step) -> throughput.Rate:
    """The rate of steps on what the loader gives."""
    keys = throughput.sample_keys(bench, size)
    with throughput.stream(bench, build.TRAIN, keys) as batches:
        return throughput.measure(bench, batches, bench.parts.plan.num_micro_batches, step)


def measure_mode(day: Day, mode: str, latest: float, rows: dict[int, dict]) -> None:
    """Measure a mode at all sizes, in the order of a run, that can begin before `latest`."""
    try:
        step = step_of(mode, day.bench)
    except ValueError as error:
        for row in rows.values():
            row[mode] = {"missing": str(error)}
        return
    for size, row in rows.items():
        if time.monotonic() > latest:
            row[mode] = {"missing": "no time was left"}
            continue
        try:
            with throughput.phase(f"{size} px, {mode}"):
                row[mode] = measure_step(day, step, size)
        except RuntimeError as error:  # what torch raises when it cannot compile or record
            row[mode] = {"missing": " ".join(str(error).split())[:200]}
        if mode == EAGER:
            with throughput.phase(f"{size} px, loader"):
                rate = measure_loaded(day.bench, size, lambda batches: None)
            row["loader_images_per_s"] = rate.images_per_s
        # Now: should this machine be taken away, what was measured is in its log.
        print(f"{size} px: {json.dumps({mode: row[mode]})}", flush=True)


def measure(day: Day) -> list[dict]:
    """A row for every size."""
    bench = day.bench
    on_gpu = bench.parts.ranks.device.type == "cuda"
    modes = (EAGER, COMPILED, GRAPH) if on_gpu else (EAGER, COMPILED)
    rows = {size: {"image_size": size} for size in day.sizes}
    if not on_gpu:
        for row in rows.values():
            row[GRAPH] = {"missing": "needs a GPU"}
    num_measurements = len(day.sizes) * sum(PER_SIZE[mode] for mode in modes)
    left_s = day.ends_at - time.monotonic()
    bench.seconds = max(MEASURED * left_s, 0) / (2 * num_measurements)
    # Lack of memory shows at once, and the device's libraries are loaded. A size that is not
    # measured: cuDNN remembers what it has tried.
    largest = max(day.sizes)
    with throughput.memory_advice(bench.parts.cfg, largest):
        step = step_of(EAGER, bench)
        batch = throughput.synthetic_batch(bench, largest + 8)
        step([batch] * bench.parts.plan.num_micro_batches)
    for number, mode in enumerate(modes):
        # Time for what comes after, and for the measurement itself.
        later_s = len(day.sizes) * sum(map(day.seconds_for, modes[number + 1 :]))
        measure_mode(day, mode, day.ends_at - later_s - day.seconds_for(mode), rows)
    return list(rows.values())


def as_table(rows: Sequence[dict]) -> str:
    """The rows in Markdown, and below them why figures are missing."""
    modes = (EAGER, COMPILED, GRAPH)
    names = ["px", "loader"]
    names += [f"{mode}{what}" for mode in modes for what in ("", ", with loader", ", first step")]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [str(row["image_size"])]
        cells.append(f"{row['loader_images_per_s']:,.0f}" if "loader_images_per_s" in row else "-")
        for figures in (row[mode] for mode in modes):
            cells += cells_of(figures)
        lines.append(f"| {' | '.join(cells)} |")
    missing: dict[str, list[int]] = {}
    for row in rows:
        for mode in modes:
            if "missing" in row[mode]:
                missing.setdefault(f"{mode}: {row[mode]['missing']}", []).append(row["image_size"])
    lines += [f"{why} ({', '.join(map(str, sizes))} px)" for why, sizes in missing.items()]
    return "\n".join(lines)


def cells_of(figures: dict) -> list[str]:
    """A mode at one size: its rate, that with the loader and the share of waiting, first step."""
    if "missing" in figures:
        return ["-"] * 3
    both = f"{figures['both_images_per_s']:,.0f}, waiting {figures['data_wait_pct']:.1f}%"
    return [f"{figures['images_per_s']:,.0f}", both, f"{figures['first_step_s']:.2f} s"]


def settings(args: argparse.Namespace) -> TrainConfig:
    """The recipe with crops and batches as given."""
    fixed = {
        "image_size": max(args.image_sizes),
        **ONE_SIZE,
        **dict.fromkeys(("total_batch_size", "device_batch_size"), args.batch_size),
        "num_workers": args.num_workers,
        "data_dir": str(args.data_dir),
        "amp": args.amp,
    }
    cfg = TrainConfig(**{**RECIPES[args.recipe].settings, **fixed})
    for size in args.image_sizes:
        replace(cfg, image_size=size)  # raises if it is too small
    return cfg


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="gpu_day.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data_dir", type=Path, required=True, metavar="DIR", help="a packed data set, or folders")
    add("--recipe", choices=list(RECIPES), default="mild28", help="[%(default)s]")
    add("--image_sizes", type=int, nargs="+", default=list(SIZES), metavar="N", help="px")
    add("--batch_size", type=int, default=256, metavar="N", help="images a step [%(default)s]")
    add("--amp", choices=("auto", "bf16", "fp16", "fp32"), default="auto", help="[%(default)s]")
    add("--num_workers", type=int, default=-1, metavar="N", help="loader processes [the cores]")
    add("--minutes", type=float, default=10.0, metavar="X", help="for all of it [%(default)s]")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser


def run(args: argparse.Namespace, ends_at: float) -> dict[str, object]:
    """Measure everything. Raises ValueError if the user must change something."""
    if not 0 < args.minutes < math.inf:
        raise ValueError(f"--minutes {args.minutes:g}: must be above 0")
    outputs.check({"json": args.json}, {"json": ("machine", "rows")})
    cfg = settings(args)
    bench = throughput.set_up(cfg, seconds=0)
    with closing(bench.parts.loader):
        # So that no measurement waits for the disk.
        throughput.read(bench, bench.parts.splits.train, bench.sample, 60 * args.minutes / 10)
        rows = measure(Day(bench, sorted(set(args.image_sizes)), ends_at))
    on_gpu = bench.parts.ranks.device.type == "cuda"
    return {
        "machine": {
            "gpu": torch.cuda.get_device_name(bench.parts.ranks.device) if on_gpu else None,
            "cpu": limits.cpu_name(),
            "cores": limits.num_cores(),
            "num_workers": bench.num_workers,
            "precision": bench.parts.precision.name,
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda,
        },
        "rows": rows,
        "settings": cfg.to_json(),
        "seconds_a_measurement": bench.seconds,
        "minutes": args.minutes,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and write the JSON; 2 if something must be changed."""
    start = time.monotonic()
    args = build_parser().parse_args(argv)
    try:
        result = run(args, start + 60 * args.minutes)
    except (ValueError, OSError) as error:
        print(f"gpu_day.py: error: {error}", file=sys.stderr)
        return 2
    machine = result["machine"]
    print(
        f"{machine['gpu'] or 'no GPU'}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['num_workers']} loader processes, torch {machine['torch']}, "
        f"{machine['precision']}; {args.recipe}, batch {args.batch_size}; images/s\n"
    )
    print(as_table(result["rows"]))
    if not args.json:
        return 0
    text = json.dumps(result, indent=1) + "\n"
    problem = outputs.write_or_keep("json", args.json, lambda path: path.write_text(text))
    if problem:
        print(f"gpu_day.py: error: {problem}", file=sys.stderr)
    return 2 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
