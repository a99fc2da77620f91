"""What the tests share: a small folder of images made in code, and the commands run for real."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

REPOSITORY = Path(__file__).parent.parent
CLASSES = ("ant", "bee", "cat")
TRAIN_PER_CLASS, VAL_PER_CLASS = 22, 7  # 66 and 21: neither is a multiple of the batch of 16
STEPS_PER_EPOCH = len(CLASSES) * TRAIN_PER_CLASS // 16

sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import imds  # noqa: E402 (both found there)

import sampling  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the fault tests with full counts")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_configure(config: pytest.Config) -> None:
    # One thread: what the tests compare bit by bit must not depend on the machine's cores.
    torch.set_num_threads(1)
    if config.option.markexpr != "gpu":  # nor on its GPUs, which test_gpu.py is for
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    settings.register_profile("no deadline", deadline=None)  # tests do not measure speed
    settings.load_profile("no deadline")


def make_picture(seed: int, label: int) -> Image.Image:
    """A picture with coarse structure, whose colours hint at its class; from 36 to 75 px a side."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(36, 76, size=2)
    coarse = rng.integers(0, 200, size=(5, 5, 3), dtype=np.uint8)
    coarse[..., label] |= 0xC0
    return Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC)


def make_folder(
    root: Path, train_per_class: int, val_per_class: int, val_name: str = "val"
) -> Path:
    """train/CLASS/*.jpg and val/CLASS/*.jpg."""
    seed = 0
    for split, count in (("train", train_per_class), (val_name, val_per_class)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                seed += 1
                make_picture(seed, label).save(root / split / name / f"{i:03d}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three classes, 66 training and 21 validation images. Do not write into it."""
    return make_folder(tmp_path_factory.mktemp("images"), TRAIN_PER_CLASS, VAL_PER_CLASS)


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """This environment without any launcher's variables, one thread, plus some."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "IMAGENET_DIR")
    clean = {key: value for key, value in os.environ.items() if key not in launcher}
    quiet = {"AWS_EC2_METADATA_DISABLED": "true"}  # no test but spot_watch's own asks for notices
    return clean | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | quiet | more


# What torchrun sets for a single rank; the same train.py without torchrun's five seconds.
ONE_RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}


def start(
    words: Sequence[object], cwd: Path, stdout: IO | int = subprocess.PIPE, **more: str
) -> subprocess.Popen:
    """Start a command of this repository in a folder, in a session of its own."""
    return subprocess.Popen(
        [str(word) for word in words],
        cwd=cwd,
        env=environment(**more),
        stdout=stdout,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout_s: float = 240) -> Result:
    out, err = process.communicate(timeout=timeout_s)
    return Result(process.returncode, out, err)


def run(words: Sequence[object], cwd: Path, **more: str) -> Result:
    return finish(start(words, cwd, **more))


def train_words(*flags: object) -> list[object]:
    return [sys.executable, REPOSITORY / "train.py", *flags]


def torchrun_words(num_ranks: int, script: str, *flags: object) -> list[object]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, f"--nproc_per_node={num_ranks}", REPOSITORY / script, *flags]


def tiny_flags(data_dir: Path, run_dir: Path) -> list[object]:
    """The tiny model with everything on that has state, saving every third step, in fp32."""
    return [
        "--recipe=tiny", f"--data_dir={data_dir}", f"--run_dir={run_dir}", "--epochs=3",
        "--ema_decay=0.9", "--nesterov", "--amp=fp32", "--save_every_steps=3",
        "--log_every_steps=1", "--clip_grad_norm=5", "--label_smoothing=0.1", "--log_every_s=0",
    ]  # fmt: skip


def wait_for(condition: Callable[[], object], timeout_s: float = 120, what: str = "") -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what or condition}"
        time.sleep(0.02)


def status_of(run_dir: Path) -> dict:
    path = run_dir / "status.json"
    return json.loads(path.read_text()) if path.exists() else {}


def steps_logged(run_dir: Path) -> list[dict]:
    """The training records of log.jsonl, without what depends on the clock."""
    clock = ("seconds", "images_per_s", "data_wait_pct")
    path = run_dir / "log.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        {key: value for key, value in record.items() if key not in clock}
        for record in records
        if record["kind"] == "train"
    ]


def newest_checkpoint(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("step_*.pt"))


def assert_same_end(one: Path, other: Path) -> None:
    """Two finished runs ended bit for bit alike: state, rows and logged losses."""
    first, second = (
        torch.load(newest_checkpoint(run_dir), weights_only=True) for run_dir in (one, other)
    )
    for key in ("model", "ema", "optimizer", "scheduler", "scaler", "step", "epoch_sums"):
        assert_same(first[key], second[key], key)
    clock = ("seconds", "images_per_s", "data_wait_pct", "cost_usd")
    for a, b in zip(first["rows"], second["rows"], strict=True):
        for key in a.keys() - set(clock):
            assert a[key] == b[key], f"row {a['step']}: {key}"
    assert steps_logged(one) == steps_logged(other)


def assert_same(a: object, b: object, where: str) -> None:
    """Equal values, and equal bits in every tensor, however nested."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def processes_mentioning(text: str) -> list[int]:
    """Ids of the processes, zombies apart, that have the text in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue  # it ended meanwhile
        if text in command and state != "Z":
            found.append(int(entry.name))
    return found


@pytest.fixture
def no_leftovers(tmp_path: Path) -> Iterator[None]:
    """Fails a test that leaves processes of its own folder behind, and ends them."""
    yield
    leftovers = processes_mentioning(str(tmp_path))
    for pid in leftovers:
        os.kill(pid, signal.SIGKILL)
    assert not leftovers, f"processes left running: {leftovers}"


class Gate:
    """A picture that is not there yet: a loader that reads it waits until it is opened."""

    def __init__(self, picture: Path) -> None:
        self._picture, self._contents = picture, picture.read_bytes()
        picture.unlink()
        os.mkfifo(picture)
        self._pipe: int | None = None

    def wait_for_reader(self) -> None:
        def is_read() -> bool:
            try:
                self._pipe = os.open(self._picture, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # ENXIO: nobody reads
                return False
            return True

        wait_for(is_read, what=f"a reader of {self._picture}")

    def open(self) -> None:
        """Give whoever waits the picture, and put it in place for those who come later."""
        beside = self._picture.with_name("beside.tmp")
        beside.write_bytes(self._contents)
        beside.rename(self._picture)
        os.write(self._pipe, self._contents)
        os.close(self._pipe)


def training_gate(data_dir: Path, step: int, seed: int = 0) -> Gate:
    """A gate among the images of this step (the first is 0) of tiny_flags' run.

    The one that is wanted last in the next epoch, so that no loader that reads ahead is there too:
    a pipe gives its contents to one reader only.
    """
    epoch, batch = divmod(step, STEPS_PER_EPOCH)
    num_images = len(CLASSES) * TRAIN_PER_CLASS
    order, after = (sampling.epoch_order(seed, e, num_images).tolist() for e in (epoch, epoch + 1))
    label, number = divmod(
        max(order[16 * batch : 16 * batch + 16], key=after.index), TRAIN_PER_CLASS
    )
    return Gate(data_dir / "train" / CLASSES[label] / f"{number:03d}.jpg")


def validation_gate(data_dir: Path) -> Gate:
    return Gate(data_dir / "val" / CLASSES[0] / "000.jpg")


def events_of(run_dir: Path) -> list[str]:
    """The texts of log.jsonl's events."""
    path = run_dir / "log.jsonl"
    records = map(json.loads, path.read_text().splitlines()) if path.exists() else []
    return [record["text"] for record in records if record["kind"] == "event"]


def saved_steps(run_dir: Path) -> set[int]:
    return {int(path.stem.split("_")[1]) for path in (run_dir / "checkpoints").glob("step_*.pt")}


@pytest.fixture
def service() -> Iterator["imds.FakeService"]:
    """A metadata service for spot_watch.py."""
    with imds.serve() as service:
        yield service


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a file system")
needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
