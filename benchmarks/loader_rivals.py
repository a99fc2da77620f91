"""Other projects' loaders for loader.py, each in a process of its own and in its own Python.

    python benchmarks/loader_rivals.py ffcv|dali|webdataset      (started by loader.py, not by hand)

A process reads one JSON object per line and answers with one: {"do": "make", ...} gets a pipeline
ready under a name, {"do": "run", ...} has it make some batches and answers with the seconds. In
between it does nothing, so that loader.py can measure something else on the same core. It uses
nothing of this project, which its Python need not be able to run.
"""

import argparse
import importlib
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from loader_corpus import jpeg_files, tar_file, write_beton

MIN_RATIO, MAX_RATIO = 3 / 4, 4 / 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, of values 0 to 1
TITLES = {"ffcv": "FFCV", "dali": "DALI", "webdataset": "WebDataset"}
# In pixels, 0: the files as they are.
LONG_SIDES = {"ffcv": (500, 400), "dali": (0, 500), "webdataset": (0,)}
SETTLE_S = 0.01  # after which no thread has anything left to do; costs no processor time
MAX_IMAGES = 1 << 20  # FFCV wants an epoch's order beforehand: it never gets to this one's end


class RivalError(RuntimeError):
    """Another project's loader is not installed, or failed."""


class Rival:
    """A process with another project's loader, seen from loader.py.

    log: file for what it prints. Raises RivalError if the loader is not installed there.
    """

    def __init__(self, library: str, python: Path, log: Path) -> None:
        self.library, self._log = library, log
        with open(log, "w") as errors:
            self._process = subprocess.Popen(
                [python, __file__, library],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        answer = self._answer()
        if "missing" in answer:
            self.close()
            raise RivalError(f"{library} is not installed in {python} ({answer['missing']})")
        self.version = answer["version"]

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            code, words = self._process.wait(), self._log.read_text().strip().splitlines()[-1:]
            raise RivalError(f"{self.library} ended with code {code}: {' '.join(words)}")
        return json.loads(line)

    def ask(self, do: str, **values: object) -> dict:
        """Have something done; "seconds" of the answer are the processor time.

        Raises RivalError if the process dies.
        """
        self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def store(
        self, files: Sequence[str], labels: Sequence[int], long_side: int, cache: Path
    ) -> list[str]:
        """The pictures in this loader's format, made in `cache` if they are not there yet.

        long_side: in pixels, 0 for the files as they are. Returns the paths of the files.
        """
        if self.library == "dali":
            return jpeg_files(files, long_side, cache) if long_side else list(files)
        if self.library == "webdataset":
            return [tar_file(files, labels, cache)]
        path = cache / f"{long_side}.beton"
        if not path.exists():
            unfinished = f"{path}.partial"
            self.ask("write", path=unfinished, files=files, labels=labels, long_side=long_side)
            os.replace(unfinished, path)
        return [str(path)]


def existing_python(text: str) -> Path:
    """Raises ArgumentTypeError if there is no such file."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such file; name a Python")
    return Path(text)


def add_python_options(parser: argparse.ArgumentParser) -> None:
    add, here = parser.add_argument, Path(sys.executable)
    for library in LONG_SIDES:
        option, help_text = f"--{library}_python", "[this Python]"
        add(option, type=existing_python, default=here, metavar="PATH", help=help_text)


def start_rivals(
    pythons: dict[str, Path], files: Sequence[str], labels: Sequence[int], cache: Path
) -> list[Rival]:
    """The loaders that are installed, with their files made; the others are named on the terminal.

    pythons: which Python runs which library.
    """
    rivals = []
    for library, python in pythons.items():
        try:
            rival = Rival(library, python, cache / f"{library}.log")
            for long_side in LONG_SIDES[library]:
                rival.store(files, labels, long_side, cache)
            rivals.append(rival)
        except RivalError as error:
            print(f"skipped: {error}")
    return rivals


def make_ffcv(
    files: list[str],
    labels: list[int],
    order: list[int],
    image_size: int,
    min_crop_scale: float,
    batch_size: int,
) -> Callable[[int], None]:
    """A function that makes a number of batches with https://github.com/libffcv/ffcv."""
    import numpy as np
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    crop = RandomResizedCropRGBImageDecoder(
        (image_size, image_size), scale=(min_crop_scale, 1.0), ratio=(MIN_RATIO, MAX_RATIO)
    )
    loader = Loader(
        files[0],
        batch_size=batch_size,
        num_workers=1,
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        indices=np.resize(np.array(order, np.uint64), MAX_IMAGES),
        pipelines={
            "image": [crop, RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )
    # Its thread would work ahead while others are measured: each batch waits to be asked for.
    turns, schedule_epoch = threading.Semaphore(0), loader.memory_manager.schedule_epoch

    def schedule(batches: list) -> object:
        context = schedule_epoch(batches)
        context.start_batch = lambda number: turns.acquire()
        return context

    loader.memory_manager.schedule_epoch = schedule
    batches = iter(loader)

    def run(num_batches: int) -> None:
        turns.release(num_batches)
        for _ in range(num_batches):
            next(batches)

    run(len(order) // batch_size)  # compiles, and maps the whole file
    return run


def make_dali(
    files: list[str],
    labels: list[int],
    order: list[int],
    image_size: int,
    min_crop_scale: float,
    batch_size: int,
) -> Callable[[int], None]:
    """A function that makes a number of batches with https://github.com/NVIDIA/DALI; no GPU."""
    from nvidia.dali import fn, pipeline_def, types

    # No batch is made ahead: others are measured meanwhile, and one core would gain nothing.
    @pipeline_def(
        batch_size=batch_size,
        num_threads=1,
        device_id=None,
        prefetch_queue_depth=1,
        exec_async=False,
        exec_pipelined=False,
        exec_dynamic=False,
        seed=0,
    )
    def crops() -> tuple:
        """Images and their labels; DALI makes a graph of it."""
        data, numbers = fn.readers.file(
            files=[files[i] for i in order], labels=[labels[i] for i in order]
        )
        images = fn.decoders.image_random_crop(
            data,
            device="cpu",
            output_type=types.RGB,
            num_attempts=10,
            random_area=[min_crop_scale, 1.0],
            random_aspect_ratio=[MIN_RATIO, MAX_RATIO],
        )
        images = fn.resize(
            images, size=[image_size, image_size], interp_type=types.INTERP_LINEAR, antialias=True
        )
        return fn.flip(images, horizontal=fn.random.coin_flip()), numbers

    pipeline = crops()
    pipeline.build()

    def run(num_batches: int) -> None:
        for _ in range(num_batches):
            pipeline.run()

    return run


def make_webdataset(
    files: list[str],
    labels: list[int],
    order: list[int],
    image_size: int,
    min_crop_scale: float,
    batch_size: int,
) -> Callable[[int], None]:
    """A function that makes a number of batches with https://github.com/webdataset/webdataset.

    It reads its .tar from front to back, over and over, so that the pictures of a round are the
    next ones there and not those of `order`. It processes them as loader.py's base does.
    """
    import torch
    import webdataset
    from torchvision import transforms

    torch.set_num_threads(1)
    torch.manual_seed(0)
    chain = transforms.Compose(
        [
            transforms.RandomResizedCrop(image_size, scale=(min_crop_scale, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    # In a list, since in a plain string it would treat braces in the path as a pattern.
    dataset = webdataset.WebDataset(files, shardshuffle=False).decode("pil").to_tuple("jpg", "cls")
    samples = itertools.chain.from_iterable(itertools.repeat(dataset))

    def run(num_batches: int) -> None:
        for _ in range(num_batches):
            torch.stack([chain(image) for image, _ in itertools.islice(samples, batch_size)])

    return run


# With the modules that each needs.
LIBRARIES = {
    "ffcv": (make_ffcv, "ffcv.loader"),
    "dali": (make_dali, "nvidia.dali"),
    "webdataset": (make_webdataset, "webdataset", "torchvision"),
}


def version_of(library: str) -> str:
    """Raises ImportError or OSError if it, or something it needs, is not installed."""
    module, *_ = [importlib.import_module(name) for name in LIBRARIES[library][1:]]
    # FFCV 1.0.2 reports itself as 0.0.3rc1; DALI's package has CUDA's version in its name.
    return importlib.metadata.version("ffcv") if library == "ffcv" else module.__version__


def main(argv: Sequence[str] | None = None) -> int:
    """Answer until nothing more is asked; 2 if the library is not there."""
    (library,) = sys.argv[1:] if argv is None else argv
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the libraries print
    reply = lambda **values: print(json.dumps(values), file=replies, flush=True)
    try:
        reply(version=version_of(library))
    except (ImportError, OSError) as error:
        reply(missing=str(error).splitlines()[0])
        return 2
    pipelines = {}
    for line in sys.stdin:
        question = json.loads(line)
        do, start = question.pop("do"), time.process_time()
        if do == "run":
            pipelines[question["name"]](question["num_batches"])
        elif do == "make":
            name = question.pop("name")
            pipelines[name] = LIBRARIES[library][0](**question)
        elif do == "write":
            write_beton(**question)
        else:
            os.sched_setaffinity(0, question["cores"])
        time.sleep(SETTLE_S)
        reply(seconds=time.process_time() - start)
    return 0


if __name__ == "__main__":
    exit_code = main()
    # Not sys.exit: FFCV's thread would wait for a batch that nobody will ask for.
    os._exit(exit_code)
