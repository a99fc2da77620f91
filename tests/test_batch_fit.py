"""--device_batch_size auto: the most that fits under a real limit, agreed on, recorded, once."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import (
    ONE_RANK,
    REPOSITORY,
    finish,
    make_folder,
    run,
    start,
    status_of,
    tiny_flags,
    torchrun_words,
    train_words,
    wait_for,
)
from hypothesis import given
from hypothesis import strategies as st

import assembly
import batch_fit
import data
import train
import trainer
from command_line import Request
from distributed import Ranks

BATCH, SMALLER, PRIME = 249, 83, 251  # 249 = 3 x 83, and 251 has no smaller candidate
FLAGS = ["--recipe=tiny", "--amp=fp32", "--image_size=160", "--eval_resize_size=160"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """252 training images: a large batch fits into it."""
    return make_folder(tmp_path_factory.mktemp("many") / "data", 84, 1)


def auto_words(folder: Path, run_dir: Path, batch: int, *more: object) -> list[object]:
    batch_flags = [f"--total_batch_size={batch}", "--device_batch_size=auto", "--epochs=1"]
    return train_words(*FLAGS, *batch_flags, f"--data_dir={folder}", f"--run_dir={run_dir}", *more)


def recorded(run_dir: Path) -> dict:
    return json.loads((run_dir / "config.json").read_text())["settings"]


@given(st.integers(1, 5000))
def test_candidates_are_the_largest_divisors_up_to_half_of_each_other(images):
    sizes = batch_fit.candidates(images)
    assert sizes[0] == images and all(images % size == 0 for size in sizes)
    assert all(size >= 2 for size in sizes[1:])
    for size, smaller in zip(sizes, [*sizes[1:], 1], strict=True):  # 1: of the last there is none
        assert smaller <= max(size // 2, 1)
        assert all(images % between for between in range(smaller + 1, size // 2 + 1))


PEAKS = f"""
import re, sys
sys.path.insert(0, {str(REPOSITORY)!r})
import torch, train, assembly, batch_fit
from command_line import Request
from interruption import Interruption

take_step = batch_fit.take_step

def noted(cfg, device, sizes):
    for size in ({SMALLER}, sizes[-1]):
        take_step(cfg, device, (2, size))
        print(re.search(r"VmPeak:\\s+(\\d+) kB", open("/proc/self/status").read())[1], flush=True)

batch_fit.take_step = noted  # in the child, too, which imports this file again
if __name__ == "__main__":
    settings = {{"recipe": "tiny", "amp": "fp32", "image_size": 160, "eval_resize_size": 160}}
    cfg = assembly.resolve(Request(settings, fresh=True))
    sizes = batch_fit.candidates({BATCH})
    print(batch_fit.largest_that_fits(cfg, torch.device("cpu"), sizes, Interruption()))
"""


@pytest.fixture(scope="module")
def under_limit(tmp_path_factory) -> list[object]:
    """What to put before a command so that the smaller batch fits and the larger does not.

    It is an address space halfway between what a step of each takes; without it the larger fits.
    """
    script = tmp_path_factory.mktemp("peaks") / "peaks.py"
    script.write_text(PEAKS)
    result = run([sys.executable, script], script.parent)
    assert result.code == 0, result.err
    smaller, larger, fitting = map(int, result.out.split())
    assert fitting == BATCH
    assert larger - smaller > 300_000, "kB: too little between them to tell them apart"
    return ["prlimit", f"--as={1024 * (smaller + larger) // 2}"]


def test_under_a_limit_a_smaller_batch_trains_and_stays_the_runs(
    folder, under_limit, tmp_path, capsys
):
    run_dir = tmp_path / "run"
    words = auto_words(folder, run_dir, BATCH)
    result = run([*under_limit, *words], tmp_path, **ONE_RANK)
    assert result.code == 0, result.err
    assert f"trying {BATCH} images of 160 px" in result.out
    assert f"device batch size: {SMALLER} fit" in result.out
    assert recorded(run_dir)["device_batch_size"] == SMALLER
    assert (status_of(run_dir)["state"], status_of(run_dir)["step"]) == ("done", 1)

    result = run(words, tmp_path, **ONE_RANK)  # now the larger one would fit
    assert result.code == 0 and "resuming at step 1" in result.out, result.err
    assert "trying" not in result.out and f"x 3 micro-batches x {SMALLER} images" in result.out
    assert recorded(run_dir)["device_batch_size"] == SMALLER
    assert train.main([f"--run_dir={run_dir}", f"--device_batch_size={BATCH}"]) == 2
    assert f"--device_batch_size {BATCH} (the run has {SMALLER})" in capsys.readouterr().err

    cfg = assembly.resolve(Request({"run_dir": str(run_dir), "device_batch_size": "auto"}), 2)
    with pytest.raises(ValueError, match="does not divide over 2 ranks: start 1, 3 of them"):
        trainer.make_plan(cfg, data.open_dataset(folder)[0], Ranks(world_size=2))
    new = Request({"total_batch_size": BATCH, "device_batch_size": "auto"}, fresh=True)
    with pytest.raises(ValueError, match=f"--total_batch_size {BATCH} does not divide over 2"):
        assembly.resolve(new, 2)


def test_where_nothing_fits_one_line_says_so(folder, under_limit, tmp_path):
    words = auto_words(folder, tmp_path / "run", PRIME)
    result = run([*under_limit, *words], tmp_path, **ONE_RANK)
    assert result.code == 2 and "Traceback" not in result.err, result.err
    (line,) = (line for line in result.err.splitlines() if "error: " in line)
    assert f"--device_batch_size auto: not even {PRIME} images of 160 px fit" in line
    assert "take a smaller --image_size" in line
    assert status_of(tmp_path / "run")["state"] == "config error"


def test_a_given_batch_that_does_not_fit_is_told_in_one_line(folder, under_limit, tmp_path):
    words = auto_words(folder, tmp_path / "run", BATCH, f"--device_batch_size={BATCH}")
    result = run([*under_limit, *words], tmp_path, **ONE_RANK)
    assert result.code == 2 and "Traceback" not in result.err, result.err
    (line,) = (line for line in result.out.splitlines() if "error: " in line)
    assert f"step 1: --device_batch_size {BATCH} of 160 px (" in line
    assert "--device_batch_size auto" in line
    assert status_of(tmp_path / "run")["state"] == "config error"


FULL = f"""
import os, sys
sys.path.insert(0, {str(REPOSITORY)!r})
import torch
import engine, train

def train_step(state, *args, take_step=engine.train_step):
    if os.environ["RANK"] == "1" and state.step == int(os.environ["FULL_AT"]):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\\nand more")
    return take_step(state, *args)

engine.train_step = train_step
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("full_at", [0, 1])
def test_one_rank_without_memory_ends_all_of_them(image_folder, tmp_path, full_at):
    """At once; after steps that went well it is a crash, which the supervisor restarts."""
    (tmp_path / "full.py").write_text(FULL)
    words = torchrun_words(2, tmp_path / "full.py", *tiny_flags(image_folder, tmp_path / "run"))
    begin = time.monotonic()
    result = run(words, tmp_path, FULL_AT=str(full_at))
    assert result.code != 0 and time.monotonic() - begin < 120
    told = "error: not enough memory on cpu for step 1: --device_batch_size 8 of 32 px (CUDA out"
    assert (told in result.err) == (full_at == 0), result.err
    assert ("OutOfMemoryError" in result.err) == (full_at == 1)
    state = status_of(tmp_path / "run")["state"]
    assert state == ("config error" if full_at == 0 else "running")


TRIES = f"""
import os, signal, sys
if __name__ == "__mp_main__" and "broken" in sys.argv:
    os._exit(1)
sys.path.insert(0, {str(REPOSITORY)!r})
import torch
import batch_fit
from config import TrainConfig
from interruption import Interruption

def take_step(cfg, device, sizes):
    if sizes[-1] == 64:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
    if sizes[-1] == 32:
        os.kill(os.getpid(), signal.SIGKILL)
    if sizes[-1] == 7:
        raise KeyError("a mistake")

batch_fit.take_step = take_step  # in the child, too, which imports this file again
if __name__ == "__main__":
    stop, cpu = Interruption(), torch.device("cpu")
    for sizes in ([64, 32, 16, 8], [7, 2], [2]):
        try:
            print(batch_fit.largest_that_fits(TrainConfig(), cpu, sizes, stop))
        except RuntimeError as error:
            print(error)
            sys.argv.append("broken")
"""


def test_a_killed_child_has_run_out_of_memory_and_other_errors_are_told(tmp_path):
    """Among them that it could not even begin, which must not be tried for ever."""
    (tmp_path / "tries.py").write_text(TRIES)
    result = run([sys.executable, "tries.py"], tmp_path)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        "16",
        "--device_batch_size auto: KeyError: 'a mistake'",
        "--device_batch_size auto: the process that tries sizes ended before the first one",
    ]


AGREE = f"""
import os, sys
sys.path.insert(0, {str(REPOSITORY)!r})
import torch.distributed as dist
import batch_fit, distributed
from config import TrainConfig
from interruption import Interrupted

ranks, rendezvous, asked = distributed.read_ranks(), dist.rendezvous, []
cfg = TrainConfig(total_batch_size=32, device_batch_size="auto")

def settle(fitting):
    def largest_that_fits(cfg, device, sizes, stop):
        asked.append(list(sizes))
        if fitting[ranks.rank] is None:
            raise Interrupted
        return fitting[ranks.rank]
    batch_fit.largest_that_fits = largest_that_fits
    prefix = f"settled {{len(asked)}}"  # one process settles once: another time needs other keys
    dist.rendezvous = lambda *args, **more: iter(
        [(dist.PrefixStore(prefix, next(rendezvous(*args, **more))[0]), 0, 0)])
    try:
        return batch_fit.settle(cfg, ranks, None, lambda text: None).device_batch_size
    except (Interrupted, ValueError) as error:
        return type(error).__name__

found = [settle(fitting) for fitting in ((8, 4), (2, 16), (16, 0), (8, None), (None, 0))]
dist.rendezvous = rendezvous
distributed.connect(ranks)
line = f"rank {{ranks.rank}}: {{found}}, {{asked[0]}}, {{distributed.agree([1], ranks)}}\\n"
os.write(1, line.encode())  # whole, whatever the other rank writes
distributed.disconnect()
"""


def test_ranks_take_what_fits_on_all_of_them_and_end_together(tmp_path):
    (tmp_path / "agree.py").write_text(AGREE)
    result = run(torchrun_words(2, tmp_path / "agree.py"), tmp_path)
    assert result.code == 0, result.err
    told = "[4, 2, 'ValueError', 'Interrupted', 'Interrupted'], [16, 8, 4, 2], [2]"
    assert sorted(result.out.splitlines()) == [f"rank {rank}: {told}" for rank in (0, 1)]


def trying_children(pid: int) -> list[int]:
    """Ids of a process's children that try sizes."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return [child for child, command in commands.items() if b"spawn_main" in command]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_trying_ends_the_child_too(folder, tmp_path, no_leftovers, signum):
    words = auto_words(folder, tmp_path / "run", BATCH, "--layers=9,9,9,9")
    process = start(words, tmp_path, **ONE_RANK)
    wait_for(lambda: trying_children(process.pid))
    child = Path(f"/proc/{trying_children(process.pid)[0]}")
    # Imports take less: it is at work on a batch.
    peak = re.compile(r"VmHWM:\s+(\d+) kB")
    wait_for(lambda: int(peak.search((child / "status").read_text())[1]) > 900_000)
    begin = time.monotonic()
    os.kill(process.pid, signum)
    result = finish(process)
    wait_for(lambda: not child.exists(), timeout_s=10, what="the child's end")
    assert time.monotonic() - begin < 20 and not (tmp_path / "run" / "config.json").exists()
    assert result.code == (75 if signum == signal.SIGTERM else -signum), result.err
    assert "Traceback" not in result.err
    if signum == signal.SIGTERM:
        assert "interrupted before the first step; the same command starts again" in result.out
        assert status_of(tmp_path / "run")["state"] == "interrupted"
