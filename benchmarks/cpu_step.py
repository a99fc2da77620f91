"""What fused optimizers and MatrixConv2d gain in a training step on a CPU.

    python benchmarks/cpu_step.py

ResNet50s that differ in nothing else take steps in turn, in one process, on the same images: with
torch's loop over the weights and nn.Conv2d, then with a fused AdamW, then with MatrixConv2d, too.
Printed are the median seconds of each one's steps, and the median over the rounds of the first
one's time over the others'.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent.parent))

from model import ResNet
from resnet50.config.train_config import TrainConfig
from resnet50.training.device import choose_precision, keep_freed_memory
from resnet50.training.matrix_convolution import use_matrix_products
from resnet50.training.optimization import build_optimizer

VARIANTS = {  # whether the optimizer is fused, and whether convolutions are matrix products
    "nn.Conv2d, AdamW": (False, False),
    "nn.Conv2d, fused AdamW": (True, False),
    "MatrixConv2d, fused AdamW": (True, True),
}


def make_step(fused: bool, matrix: bool, images: torch.Tensor) -> Callable[[], None]:
    """A step of a new ResNet50 on these images."""
    torch.manual_seed(0)
    model = ResNet(num_classes=10).to(memory_format=torch.channels_last).train()
    if matrix:
        use_matrix_products(model)
    cfg = TrainConfig(optimizer="adamw", max_lr=1e-3, fused_optimizer=fused)
    optimizer = build_optimizer(model, cfg)
    precision = choose_precision("auto", torch.device("cpu"))
    labels = torch.arange(len(images)) % 10

    def step() -> None:
        with precision.autocast():
            logits = model(images)
        functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(side: int, batch_size: int, rounds: int) -> str:
    """Rows of a Markdown table."""
    images = torch.randn(batch_size, 3, side, side).contiguous(memory_format=torch.channels_last)
    steps = {name: make_step(*variant, images) for name, variant in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if number:  # the first round allocates memory
                seconds[name].append(time.perf_counter() - started)
    first, lines = next(iter(seconds.values())), []
    for name, times in seconds.items():
        gain = statistics.median(a / b for a, b in zip(first, times, strict=True))
        median = statistics.median(times)
        lines.append(f"| {side} px x {batch_size} | {name} | {median:.3f} | {gain:.2f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, size by size, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sizes", nargs="+", default=["32x128", "40x32", "64x32", "128x32"], metavar="PXxIMAGES")
    add("--rounds", type=int, default=15, metavar="N", help="[15]")
    args = parser.parse_args(argv)
    try:
        sizes = [[int(number) for number in size.split("x")] for size in args.sizes]
        sizes = [(side, batch_size) for side, batch_size in sizes]
    except ValueError:
        parser.error(f"--sizes {' '.join(args.sizes)}: give side and images, such as 64x32")
    keep_freed_memory()
    precision = choose_precision("auto", torch.device("cpu")).name
    print(f"{torch.get_num_threads()} threads, {precision}, torch {torch.__version__}")
    print("| size x images | step | seconds | times as fast |\n|---|---|---|---|")
    for side, batch_size in sizes:
        print(compare(side, batch_size, args.rounds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
