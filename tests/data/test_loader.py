"""Workers and slots: batches in order, deaths noticed, nothing left behind, no need of /dev/shm."""

import os
import resource
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from support.commands import (
    PROGRAM_PATH,
    environment,
    processes_mentioning,
    program_words,
    run,
    run_program,
    tiny_flags,
    train_words,
    wait_for,
)
from support.needs import needs_root
from support.runs import status_of

from resnet50.data.batch import Slot
from resnet50.data.loader import NICENESS, Loader, allow_open_files, choose_num_workers
from resnet50.data.sampling import BatchKey

CPU = torch.device("cpu")


def number(slot: Slot) -> None:
    """Every pixel and label is the image's number, and bad ones are those divisible by 10."""
    for place, index in enumerate(slot.key.indices.tolist()):
        slot.images[place] = index % 256
        slot.labels[place] = index
        slot.flips[place] = index % 2
        if index % 10 == 0:
            slot.add_fault(f"image {index}")


def reversed_order(slot: Slot) -> None:
    """Early batches take the longest."""
    time.sleep(0.1 if slot.key.indices[0] < 8 else 0)
    number(slot)


def stuck(slot: Slot) -> None:
    time.sleep(3600)


def keys_of(num_batches: int, size: int = 8) -> list[BatchKey]:
    return [BatchKey(0, np.arange(4 * i, 4 * i + 4), size) for i in range(num_batches)]


@pytest.mark.parametrize("num_workers", [0, 1, 3, 7])
@pytest.mark.parametrize("fill", [number, reversed_order])
def test_batches_come_in_the_order_of_their_keys(fill, num_workers):
    loader = Loader([fill], 4, 8, num_workers, CPU)
    batches = list(loader.batches(0, keys_of(30)))
    assert [batch.labels.tolist() for batch in batches] == [
        list(range(4 * i, 4 * i + 4)) for i in range(30)
    ]
    for i, batch in enumerate(batches):  # none of them was overwritten
        assert batch.images.shape == (4, 8, 8, 3) and batch.images.dtype == torch.uint8
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.labels % 256)
        assert torch.equal(batch.flips, batch.labels % 2 == 1)
        assert batch.bad_images == [f"image {n}" for n in range(4 * i, 4 * i + 4) if n % 10 == 0]
    loader.close()


def test_a_stream_can_be_given_keys_again_while_another_is_under_way():
    loader = Loader([number, reversed_order], 4, 8, 2, CPU)
    endless = loader.batches(0, keys_of(1000))
    for _ in range(3):
        assert len(list(loader.batches(1, keys_of(9)))) == 9
    assert [next(endless).labels[0].item() for _ in range(5)] == [0, 4, 8, 12, 16]
    loader.close()


def test_a_drained_stream_leaves_its_slots_to_the_next():
    loader = Loader([number], 4, 8, 2, CPU)
    assert len(list(loader.batches(0, keys_of(30)).drain())) == 30
    assert [batch.labels[0].item() for batch in loader.batches(0, keys_of(9))] == [*range(0, 36, 4)]
    loader.close()


def test_workers_let_the_training_process_go_first():
    loader = Loader([number], 4, 8, 1, CPU)
    next(loader.batches(0, keys_of(9)))
    own, found = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (0, loader._workers[0].pid))
    assert found == min(own + NICENESS, 19)  # which is as far as it goes
    loader.close()


def test_sizes_may_change_from_batch_to_batch():
    keys = [BatchKey(0, np.arange(n), size) for n, size in ((4, 8), (2, 5), (1, 8), (3, 1))]
    for num_workers in (0, 2):
        loader = Loader([number], 4, 8, num_workers, CPU)
        shapes = [tuple(batch.images.shape) for batch in loader.batches(0, keys)]
        assert shapes == [(4, 8, 8, 3), (2, 5, 5, 3), (1, 8, 8, 3), (3, 1, 1, 3)]
        loader.close()


def test_a_worker_that_is_killed_ends_the_wait_with_the_reason():
    loader = Loader([stuck], 4, 8, 2, CPU)
    stream = loader.batches(0, keys_of(4))
    os.kill(loader._workers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="ended with code -9: killed, as Linux does when memory"):
        next(stream)
    loader.close()
    assert not loader._workers


def test_a_mistake_of_ours_in_a_worker_ends_the_wait_too(capfd):
    def broken(slot: Slot) -> None:
        raise ZeroDivisionError

    loader = Loader([broken], 4, 8, 2, CPU)
    with pytest.raises(RuntimeError, match="a loader process ended with code 1"):
        next(loader.batches(0, keys_of(4)))
    loader.close()
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_workers_that_hang_are_noticed(monkeypatch):
    monkeypatch.setattr("resnet50.data.loader.TIMEOUT_S", 0.2)
    loader = Loader([stuck], 4, 8, 2, CPU)
    with pytest.raises(RuntimeError, match=r"delivered no batch for 0\.2 s"):
        next(loader.batches(0, keys_of(4)))
    loader.close()


def test_workers_ignore_the_signals_that_end_a_run():
    loader = Loader([reversed_order], 4, 8, 2, CPU)
    stream = loader.batches(0, keys_of(9))
    next(stream)
    for worker in loader._workers:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(worker.pid, signum)
    assert len(list(stream)) == 8
    loader.close()


@pytest.mark.parametrize("end", ["kill", "exit"])
def test_workers_never_outlive_their_parent(end, tmp_path):
    marked = f"{end}-{tmp_path}"
    process = subprocess.Popen(
        program_words("feed_stuck_workers", "wait" if end == "kill" else "exit", marked),
        stdout=subprocess.PIPE,
        env=environment(**PROGRAM_PATH),
    )
    assert process.stdout.readline() == b"started\n"
    if end == "kill":
        assert len(processes_mentioning(marked)) == 4
        process.kill()
    process.wait(timeout=60)  # exits by itself although its workers hang
    process.stdout.close()
    wait_for(lambda: not processes_mentioning(marked), what="the workers to end")


def test_too_little_memory_is_said_before_anything_is_made():
    with pytest.raises(ValueError, match=r"--num_workers 900 need [\d.]+ GiB for batches, .* free"):
        Loader([number], 256, 1024, 900, CPU)
    with pytest.raises(
        ValueError, match=r"--device_batch_size 65536 of 224 px .* 9.2 GiB, the limit is 1.9"
    ):
        Loader([number], 1 << 16, 224, 1, CPU)


def test_too_few_open_files_are_raised_or_said():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 9, hard))
        allow_open_files(4)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > opened + 64
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    result = run_program("limit_open_files")
    assert "--num_workers 64 need" in result.err and "`ulimit -Hn` allows 60" in result.err


@needs_root
def test_training_needs_no_dev_shm(image_folder, tmp_path):
    """A container's /dev/shm of 64 MB is the best known way to lose a DataLoader; here 4 kB do."""
    run_dir = tmp_path / "run"
    mount = 'mount -t tmpfs -o size=4k none /dev/shm && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    flags = [*tiny_flags(image_folder, run_dir), "--num_workers=2", "--max_steps=3"]
    result = run([*words, *train_words(*flags)], tmp_path)
    assert result.code == 0, result.err
    assert status_of(run_dir)["state"] == "done"


def test_the_number_of_workers_comes_from_the_cores():
    cores = len(os.sched_getaffinity(0))
    assert choose_num_workers(5, 1, True) == 5
    assert choose_num_workers(0, 1, True) == 0
    assert choose_num_workers(-1, 1, True) == cores
    assert choose_num_workers(-1, 1, False) == max(1, cores // 2)
    assert choose_num_workers(-1, 64 * cores, True) == 1
