"""The training loop that users write: torchvision's ResNet50, ImageFolder, SGD, a step schedule.

    python benchmarks/plain_loop.py --data_dir DIR --image_size 96 --minutes 10
    python benchmarks/plain_loop.py --data_dir DIR --image_size 96 --minutes 10 --bf16

What time_to_accuracy.py compares the recipes with. It follows pytorch/examples imagenet/main.py
(RandomResizedCrop, flip, momentum 0.9, weight decay 1e-4, learning rate 0.1 x batch / 256, divided
by ten after each third of the epochs); --bf16 adds autocast and channels_last, the two lines that
every tuning guide gives. Runs as many epochs as fit into the minutes, and an evaluation after each.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMED_STEPS = 10  # and as many before them, to warm up


def make_loaders(args: argparse.Namespace) -> tuple[DataLoader, DataLoader]:
    """Training batches in a new order every epoch, and the validation images, from folders."""
    size, end = args.image_size, [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    crop = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    whole = [transforms.Resize(round(size / args.crop_pct)), transforms.CenterCrop(size)]
    val_dir = next(
        args.data_dir / name for name in ("val", "validation") if (args.data_dir / name).is_dir()
    )
    train = datasets.ImageFolder(args.data_dir / "train", transforms.Compose(crop + end))
    val = datasets.ImageFolder(val_dir, transforms.Compose(whole + end))
    workers = {"num_workers": args.num_workers, "pin_memory": torch.cuda.is_available()}
    return (
        DataLoader(train, args.batch_size, shuffle=True, drop_last=True, **workers),
        DataLoader(val, args.batch_size, **workers),
    )


class Loop:
    """Model, optimizer, and one epoch of each kind."""

    def __init__(self, args: argparse.Namespace, num_classes: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.layout = torch.channels_last if args.bf16 else torch.contiguous_format
        self.bf16 = args.bf16
        model = models.resnet50(num_classes=num_classes)
        self.model = model.to(self.device, memory_format=self.layout)
        lr = 0.1 * args.batch_size / 256
        self.optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self.device, memory_format=self.layout)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(images)
            return logits, self.criterion(logits, labels.to(self.device))

    def train(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """One epoch; the mean loss."""
        self.model.train()
        losses = []
        for images, labels in batches:
            _, loss = self.forward(images, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Top-1 in percent."""
        self.model.eval()
        hits = count = 0
        for images, labels in batches:
            logits, _ = self.forward(images, labels)
            hits += (logits.argmax(1) == labels.to(self.device)).sum().item()
            count += len(labels)
        return 100 * hits / count


def epochs_that_fit(args: argparse.Namespace, batches: DataLoader, num_classes: int) -> int:
    """Epochs that fit into the minutes, by the time of a few steps of a throwaway loop."""
    loop, times = Loop(args, num_classes), []
    endless = itertools.chain.from_iterable(itertools.repeat(batches))
    for batch in itertools.islice(endless, 2 * TIMED_STEPS):
        loop.train([batch])
        times.append(time.monotonic())
    steps = len(times) - 1 - TIMED_STEPS
    step_s = (times[-1] - times[TIMED_STEPS]) / steps
    return max(1, round(args.minutes * 60 / (step_s * len(batches))))


def main(argv: Sequence[str] | None = None) -> int:
    """Train for about that many minutes, printing one line per epoch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", type=Path, required=True, help="train/CLASS/* and val/CLASS/*")
    add("--image_size", type=int, default=224, help="side of the crops, px [224]")
    add("--crop_pct", type=float, default=224 / 256, help="of the shorter side, in tests [0.875]")
    add("--batch_size", type=int, default=64, help="images per step [64]")
    add("--minutes", type=float, default=10, help="to train for, about [10]")
    add("--epochs", type=int, default=0, help="instead of as many as fit into the minutes")
    add("--num_workers", type=int, default=2, help="loader processes [2]")
    add("--bf16", action="store_true", help="autocast to bfloat16, channels_last")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    train, val = make_loaders(args)
    num_classes = len(train.dataset.classes)
    epochs = args.epochs or epochs_that_fit(args, train, num_classes)
    torch.manual_seed(args.seed)
    loop = Loop(args, num_classes)
    scheduler = torch.optim.lr_scheduler.StepLR(loop.optimizer, -(-epochs // 3))
    for epoch in range(1, epochs + 1):
        loss = loop.train(train)
        scheduler.step()
        top1 = loop.evaluate(val)
        print(f"epoch {epoch}/{epochs}: train loss {loss:.3f}, validation top-1 {top1:.2f}%")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
