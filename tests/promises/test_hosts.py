"""Two hosts joined by a cable: it is pulled in the middle of a step; one host is told to stop."""

import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from support.commands import (
    ONE_RANK,
    PROGRAMS,
    Result,
    finish,
    processes_mentioning,
    run,
    tiny_flags,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.needs import needs_root
from support.network import Host, torchrun_on, two_hosts
from support.pictures import training_gate
from support.runs import assert_same_end, newest_checkpoint, saved_steps, status_of, steps_logged

pytestmark = needs_root
PARTITION_S = 30


def flags_of(data_dir: Path, run_dir: Path) -> list[object]:
    return [*tiny_flags(data_dir, run_dir), "--save_every_steps=1", "--num_workers=1"]


def train_through_a_partition(images: Path, folder: Path, hosts: list[Host]) -> dict:
    """The cable is out for half a minute, in the middle of a step."""
    run_dir, gate = folder / "run", training_gate(images, step=2)
    both = torchrun_on(hosts, flags_of(images, run_dir), folder)
    gate.wait_for_reader()
    wait_for(lambda: 2 in saved_steps(run_dir))
    hosts[0].cable("down")
    gate.open()
    began = time.monotonic()
    third = run(train_words(*flags_of(images, run_dir)), folder, **ONE_RANK)
    time.sleep(max(0, PARTITION_S - (time.monotonic() - began)))
    steps_meanwhile = len(steps_logged(run_dir))
    hosts[0].cable("up")
    results = [finish(process) for process in both]
    return {"results": results, "third": third, "steps_meanwhile": steps_meanwhile}


def stop_and_resume(images: Path, folder: Path, hosts: list[Host]) -> dict:
    """Start without the cable; pull it until a rank gives up; tell one host to stop; end."""
    run_dir, script = folder / "run", PROGRAMS / "train_impatiently.py"
    flags = flags_of(images, run_dir)
    first, second = training_gate(images, step=2), training_gate(images, step=3)
    hosts[1].cable("down")
    both = torchrun_on(hosts, flags, folder, script)
    time.sleep(10)
    running_apart = [process.poll() for process in both] == [None, None]
    hosts[1].cable("up")
    first.wait_for_reader()
    wait_for(lambda: 2 in saved_steps(run_dir))
    hosts[1].cable("down")
    first.open()
    wait_for(lambda: both[0].poll() is not None, 60, "the rank that gives up")
    hosts[1].cable("up")
    gave_up = [finish(process) for process in both]
    left = processes_mentioning(str(run_dir))

    both = torchrun_on(hosts, flags, folder)
    wait_for(lambda: "resuming at step 2" in (run_dir / "log.jsonl").read_text())
    wait_for(lambda: len(steps_logged(run_dir)) == 3)
    second.wait_for_reader()
    both[1].send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with suppress(BrokenPipeError):  # it stopped before it wanted the picture
        second.open()
    told = [finish(process) for process in both]
    status, saved = status_of(run_dir), newest_checkpoint(run_dir).name
    left += processes_mentioning(str(run_dir))
    resumed = [finish(process) for process in torchrun_on(hosts, flags, folder)]
    return {
        "running_apart": running_apart,
        "gave_up": gave_up,
        "told": told,
        "left": left,
        "status": status,
        "saved": saved,
        "resumed": resumed,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def stories(image_folder: Path, folder: Path) -> Iterator[dict[str, Future]]:
    """Both at once, each on two hosts of its own, since they mostly wait.

    "straight" is one rank on one host: it has the bits of two (test_ranks.py).
    """
    straight = run_here(train_words(*flags_of(image_folder, folder / "straight")), folder)
    assert straight.code == 0, straight.err
    with (
        ThreadPoolExecutor() as pool,
        two_hosts(folder / "1") as one,
        two_hosts(folder / "2") as two,
    ):
        futures = {}
        for story, hosts in ((train_through_a_partition, one), (stop_and_resume, two)):
            here = folder / story.__name__
            shutil.copytree(image_folder, here / "images")
            futures[story.__name__] = pool.submit(story, here / "images", here, hosts)
        yield futures


def codes(results: list[Result]) -> list[int]:
    return [result.code for result in results]


def assert_one_history(run_dir: Path, straight: Path) -> None:
    """Every step logged once, in order; the end bit for bit that of the run on one host."""
    steps = [record["step"] for record in steps_logged(run_dir)]
    assert steps == list(range(1, 13))
    assert max(saved_steps(run_dir)) == 12 and not list(run_dir.glob("checkpoints/*.corrupt"))
    assert status_of(run_dir)["state"] == "done"
    assert_same_end(straight, run_dir)


def test_half_a_minute_without_network_is_waited_out(stories, folder):
    story = stories["train_through_a_partition"].result()
    assert codes(story["results"]) == [0, 0], story["results"]
    assert story["steps_meanwhile"] == 2
    assert story["third"].code == 2 and "is in use by process" in story["third"].err
    assert_one_history(folder / "train_through_a_partition" / "run", folder / "straight")


def test_a_partition_that_outlasts_a_ranks_patience_ends_all_and_is_resumed(stories, folder):
    story = stories["stop_and_resume"].result()
    assert story["running_apart"]  # torchrun waits for the other host
    assert codes(story["gave_up"]) == [1, 1]
    assert "RuntimeError" in story["gave_up"][0].err and not story["left"]
    assert codes(story["resumed"]) == [0, 0]
    assert_one_history(folder / "stop_and_resume" / "run", folder / "straight")


def test_sigterm_on_one_host_stops_both_at_the_same_step(stories):
    story = stories["stop_and_resume"].result()
    assert story["status"]["state"] == "interrupted" and story["status"]["step"] in (3, 4)
    assert story["saved"] == f"step_{story['status']['step']:09d}.pt"
    for result in story["told"]:
        assert result.code == 1 and "[rank" not in result.err  # torchrun's report, no rank's
