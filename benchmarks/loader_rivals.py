"""Other projects' loaders for loader.py, each in a process of its own and in its own Python.

    python benchmarks/loader_rivals.py ffcv|dali      (started by loader.py, not by hand)

A process reads a JSON object a line and answers with one: {"do": "make", ...} gets a pipeline ready
under a name, {"do": "run", ...} has it make some batches and answers with the seconds. Between two
answers it does nothing, so that loader.py can measure something else on the same core meanwhile. It
knows nothing of this project, which its Python need not be able to run.
"""

import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

MIN_RATIO, MAX_RATIO = 3 / 4, 4 / 3
QUALITY = 90
LONG_SIDES = {"ffcv": (500, 400), "dali": (0, 500)}  # pixels, 0: the files as they are
SETTLE_S = 0.01  # after which no thread has anything left to do; costs no processor time
MAX_IMAGES = 1 << 20  # FFCV wants an epoch's order beforehand: it never gets to this one's end


class RivalError(RuntimeError):
    """Another project's loader is not there or failed."""


class Rival:
    """A process with another project's loader, seen from loader.py.

    log: file for what it prints. Raises RivalError if the loader is not installed there.
    """

    def __init__(self, library: str, python: Path, log: Path) -> None:
        self.library, self._log = library, log
        with open(log, "w") as errors:
            self._process = subprocess.Popen(
                [python, __file__, library],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
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

        Raises RivalError if the process dies of it.
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
        """The pictures in this loader's way, made in `cache` if they are not there yet.

        long_side: in pixels, 0 for the files as they are. Returns the paths of the files.
        """
        if self.library == "dali":
            return jpeg_files(files, long_side, cache) if long_side else list(files)
        path = cache / f"{long_side}.beton"
        if not path.exists():
            unfinished = f"{path}.partial"
            self.ask("write", path=unfinished, files=files, labels=labels, long_side=long_side)
            os.replace(unfinished, path)
        return [str(path)]


def start_rivals(
    pythons: dict[str, Path], files: Sequence[str], labels: Sequence[int], cache: Path
) -> list[Rival]:
    """The loaders that are there, with their files made; those that are not are named.

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


def jpeg_files(files: Sequence[str], long_side: int, cache: Path) -> list[str]:
    """Plain JPEG files of the pictures, no larger than long_side; written by Pillow."""
    folder, unfinished = cache / f"{long_side}.files", cache / f"{long_side}.files.partial"
    names = [f"{number}.jpg" for number in range(len(files))]
    if not folder.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        targets = [unfinished / name for name in names]
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(write_jpeg, long_side), files, targets, chunksize=32))
        unfinished.rename(folder)
    return [str(folder / name) for name in names]


def write_jpeg(long_side: int, source: str, target: Path) -> None:
    from PIL import Image  # where this runs there is Pillow; where DALI runs there need not be

    with Image.open(source) as opened:
        image = opened.convert("RGB")
    if (scale := long_side / max(image.size)) < 1:
        size = [max(1, round(side * scale)) for side in image.size]
        image = image.resize(size, Image.Resampling.LANCZOS)
    image.save(target, quality=QUALITY, subsampling="4:2:0")


class Pictures(list):
    """(file, label) pairs, read when FFCV's writer asks for them."""

    def __getitem__(self, index: int) -> tuple[object, int]:
        from PIL import Image

        file, label = super().__getitem__(index)
        with Image.open(file) as image:
            return image.convert("RGB"), label


def write_beton(path: str, files: list[str], labels: list[int], long_side: int) -> None:
    """Write FFCV's file as its ImageNet recipe does, but all in JPEG."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    image = RGBImageField(write_mode="jpg", max_resolution=long_side, jpeg_quality=QUALITY)
    writer = DatasetWriter(path, {"image": image, "label": IntField()})
    writer.from_indexed_dataset(Pictures(zip(files, labels, strict=True)))


def make_ffcv(
    files: list[str], labels: list[int], order: list[int], image_size: int, min_crop_scale: float,
    batch_size: int,
) -> Callable[[int], None]:  # fmt: skip
    """What makes a number of batches with https://github.com/libffcv/ffcv."""
    import numpy as np
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    crop = RandomResizedCropRGBImageDecoder(
        (image_size, image_size), scale=(min_crop_scale, 1.0), ratio=(MIN_RATIO, MAX_RATIO)
    )
    loader = Loader(
        files[0], batch_size=batch_size, num_workers=1, os_cache=True,
        order=OrderOption.SEQUENTIAL, indices=np.resize(np.array(order, np.uint64), MAX_IMAGES),
        pipelines={
            "image": [crop, RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )  # fmt: skip
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
    files: list[str], labels: list[int], order: list[int], image_size: int, min_crop_scale: float,
    batch_size: int,
) -> Callable[[int], None]:  # fmt: skip
    """What makes a number of batches with https://github.com/NVIDIA/DALI; needs no GPU."""
    from nvidia.dali import fn, pipeline_def, types

    # Nothing is done ahead: others are measured meanwhile, and one core gains nothing by it.
    @pipeline_def(
        batch_size=batch_size, num_threads=1, device_id=None, prefetch_queue_depth=1,
        exec_async=False, exec_pipelined=False, exec_dynamic=False, seed=0,
    )  # fmt: skip
    def crops() -> tuple:
        data, numbers = fn.readers.file(
            files=[files[i] for i in order], labels=[labels[i] for i in order]
        )
        images = fn.decoders.image_random_crop(
            data, device="cpu", output_type=types.RGB, num_attempts=10,
            random_area=[min_crop_scale, 1.0], random_aspect_ratio=[MIN_RATIO, MAX_RATIO],
        )  # fmt: skip
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


LIBRARIES = {"ffcv": ("ffcv.loader", make_ffcv), "dali": ("nvidia.dali", make_dali)}


def version_of(library: str) -> str:
    """Raises ImportError or OSError if it is not there, or what it needs is not."""
    module = importlib.import_module(LIBRARIES[library][0])
    # FFCV 1.0.2 takes itself for 0.0.3rc1; DALI's package has CUDA's version in its name.
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
            pipelines[name] = LIBRARIES[library][1](**question)
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
