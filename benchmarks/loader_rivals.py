"""Other projects' loaders for loader.py, each in a process of its own and in its own Python.

    python benchmarks/loader_rivals.py ffcv|dali      (started by loader.py, not by hand)

A process reads a JSON object a line and answers with one a line: {"do": "make", ...} gets a
pipeline ready under a name, {"do": "run", ...} has it make so many pictures and answers with the
seconds. Between two answers it does nothing, so that loader.py can measure something else meanwhile
on the same core. It knows nothing of this project, which its Python need not be able to run.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

MIN_RATIO, MAX_RATIO = 3 / 4, 4 / 3
# FFCV asks for the order of an epoch beforehand; this is never reached.
MAX_IMAGES = 1 << 20


class Rival:
    """A process with another project's loader, seen from loader.py.

    Raises ValueError if it is not installed there, RuntimeError if something fails later.
    """

    def __init__(self, library: str, python: Path, log: Path) -> None:
        self._library, self._log = library, log
        with open(log, "w") as errors:
            self._process = subprocess.Popen(
                [python, __file__, library],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        answer = self._answer()
        if "missing" in answer:
            self.close()
            raise ValueError(f"{library} is not installed in {python} ({answer['missing']})")
        self.version = answer["version"]

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            code, lines = self._process.wait(), self._log.read_text().strip().splitlines()
            last = lines[-1] if lines else "nothing"
            raise RuntimeError(f"{self._library} ended with code {code}, its last words: {last}")
        return json.loads(line)

    def ask(self, do: str, **values: object) -> dict:
        self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


class FFCV:
    """https://github.com/libffcv/ffcv, on files of JPEGs that its own writer makes."""

    def __init__(self) -> None:

        self.version = importlib.metadata.version("ffcv")  # ffcv.__version__ is that of an old one
        self._turns, self._batches = {}, {}

    def write(self, path: str, files: list[str], labels: list[int], long_side: int) -> None:
        """Write a .beton as its ImageNet recipe does, in JPEG alone: quality 90."""
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter

        image = RGBImageField(write_mode="jpg", max_resolution=long_side, jpeg_quality=90)
        writer = DatasetWriter(path, {"image": image, "label": IntField()}, num_workers=-1)
        writer.from_indexed_dataset(Pictures(files, labels))

    def make(
        self, name: str, path: str, order: list[int], image_size: int, min_crop_scale: float,
        batch_size: int,
    ) -> None:  # fmt: skip
        import numpy as np
        from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

        crop = RandomResizedCropRGBImageDecoder(
            (image_size, image_size), scale=(min_crop_scale, 1.0), ratio=(MIN_RATIO, MAX_RATIO)
        )
        images = [crop, RandomHorizontalFlip(), ToTensor(), ToTorchImage()]
        labels = [IntDecoder(), ToTensor(), Squeeze()]
        loader = Loader(
            path, batch_size=batch_size, num_workers=1, os_cache=True,
            order=OrderOption.SEQUENTIAL, indices=np.resize(np.array(order, np.uint64), MAX_IMAGES),
            pipelines={"image": images, "label": labels},
        )  # fmt: skip
        # Its thread would work ahead while others are measured: every batch waits to be asked for.
        turns, schedule_epoch = threading.Semaphore(0), loader.memory_manager.schedule_epoch

        def schedule(batches: list) -> object:
            context = schedule_epoch(batches)
            context.start_batch = lambda number: turns.acquire()
            return context

        loader.memory_manager.schedule_epoch = schedule
        self._turns[name], self._batches[name] = turns, iter(loader)

    def run(self, name: str, num_batches: int) -> None:
        self._turns[name].release(num_batches)
        for _ in range(num_batches):
            next(self._batches[name])


class Pictures:
    """What FFCV's writer reads from."""

    def __init__(self, files: list[str], labels: list[int]) -> None:
        self._files, self._labels = files, labels

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[object, int]:
        from PIL import Image

        with Image.open(self._files[index]) as image:
            return image.convert("RGB"), self._labels[index]


class DALI:
    """https://github.com/NVIDIA/DALI on the CPU, which needs no GPU, on plain JPEG files."""

    def __init__(self) -> None:
        import nvidia.dali

        self.version = nvidia.dali.__version__
        self._pipelines = {}

    def make(
        self, name: str, files: list[str], labels: list[int], image_size: int,
        min_crop_scale: float, batch_size: int,
    ) -> None:  # fmt: skip
        from nvidia.dali import fn, pipeline_def, types

        # With nothing done ahead, which on one core gains nothing.
        @pipeline_def(
            batch_size=batch_size, num_threads=1, device_id=None, prefetch_queue_depth=1,
            exec_async=False, exec_pipelined=False, exec_dynamic=False, seed=0,
        )  # fmt: skip
        def crops() -> tuple:
            data, numbers = fn.readers.file(files=files, labels=labels)
            images = fn.decoders.image_random_crop(
                data, device="cpu", output_type=types.RGB, num_attempts=10,
                random_area=[min_crop_scale, 1.0], random_aspect_ratio=[MIN_RATIO, MAX_RATIO],
            )  # fmt: skip
            images = fn.resize(
                images, size=[image_size, image_size],
                interp_type=types.INTERP_LINEAR, antialias=True,
            )  # fmt: skip
            return fn.flip(images, horizontal=fn.random.coin_flip()), numbers

        self._pipelines[name] = crops()
        self._pipelines[name].build()

    def run(self, name: str, num_batches: int) -> None:
        for _ in range(num_batches):
            self._pipelines[name].run()


LIBRARIES = {"ffcv": FFCV, "dali": DALI}


def main(argv: Sequence[str] | None = None) -> int:
    """Answer questions until there are no more; 2 if there is no such library."""
    (library,) = sys.argv[1:] if argv is None else argv
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the libraries print

    def reply(**values: object) -> None:
        replies.write(json.dumps(values) + "\n")
        replies.flush()

    try:
        loader = LIBRARIES[library]()
    except (ImportError, OSError) as error:
        reply(missing=str(error).splitlines()[0])
        return 2
    reply(version=loader.version)
    for line in sys.stdin:
        question = json.loads(line)
        do = getattr(loader, question.pop("do"))
        start = time.perf_counter()
        do(**question)
        reply(seconds=time.perf_counter() - start)
    return 0


if __name__ == "__main__":
    # Ends without a farewell to the threads: FFCV's waits for a batch that nobody will ask for.
    code = main()
    sys.stdout.flush()
    os._exit(code)
