"""Starts one training again and again, each time on a new disk, and kills it while it copies.

    python die_and_be_restored.py FOLDER REQUESTS NUM_KILLS SEED FLAG...

FOLDER gets one run folder a start, numbered; REQUESTS is the server's log, whose lines tell when a
copy is under way. FLAG...: of train.py. Prints a line of JSON for each start: what lay in the
mirror before it, where it began, and how it ended. After a run that got to its end, another one
begins, with a mirror of its own; the last one is not killed. Each start is forked, since importing
torch takes longer than a start has to live.
"""

import contextlib
import itertools
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import torch
from support.commands import ONE_RANK

import train
from resnet50.records import curves
from resnet50.system import processes
from resnet50.system.apart import run_apart
from resnet50.system.store import open_store

MIRROR = "s3://bucket/run"
COPYING = re.compile(r"(PUT|POST|DELETE) .*(checkpoints|mirror\.json|log\.jsonl)")


def begin(run_dir: Path, flags: list[str]) -> int:
    """Process id of a lone rank in a session of its own, which prints into a file."""
    if pid := os.fork():
        return pid
    os.setsid()
    code = 1
    with contextlib.suppress(BaseException):
        with open(f"{run_dir}.out", "w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        code = train.main([*flags, f"--run_dir={run_dir}"])
    sys.stdout.flush()
    os._exit(code)


def copies_under_way(requests: Path, begin: int) -> int:
    return len(COPYING.findall(requests.read_bytes()[begin:].decode()))


def steps_there(url: str) -> dict[str, list[int]]:
    """Steps of the checkpoints that are whole in the mirror, and of those its pointer names."""
    found = {}

    def look(say) -> bool:
        store = open_store(url, "--mirror")
        names = [n for n in store.list("checkpoints") if n.endswith(".pt")]
        pointer = store.get("mirror.json")
        copies = json.loads(pointer[0])["copies"] if pointer else []
        say(
            json.dumps(
                {
                    "whole": sorted(int(re.search(r"step_(\d+)", name)[1]) for name in names),
                    "named": [copy["step"] for copy in copies],
                }
            )
        )
        return True

    run_apart(look, lambda text: found.update(json.loads(text)), lambda: False)
    return found


def wait_and_kill(pid: int, requests: Path, rng: random.Random) -> int:
    """Kill a start in the middle of a random one of its copies; returns how it ended."""
    begin_bytes, num_copies = requests.stat().st_size, rng.randrange(3, 14)
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if copies_under_way(requests, begin_bytes) >= num_copies:
            time.sleep(rng.random() * 0.03)
            os.killpg(pid, signal.SIGKILL)
            ended = os.waitpid(pid, 0)
            break
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(ended[1])


def main(folder: Path, requests: Path, num_kills: int, seed: int, flags: list[str]) -> int:
    rng = random.Random(seed)
    kills, runs, code = 0, 0, -1
    numbers = itertools.count()
    while code <= 0 and (code < 0 or kills < num_kills):
        number = next(numbers)
        url = f"{MIRROR}/{runs}"
        there = steps_there(url)
        pid = begin(folder / f"{number:03d}", [*flags, f"--mirror={url}"])
        if kills < num_kills:
            code = wait_and_kill(pid, requests, rng)
        else:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        text = (folder / f"{number:03d}.out").read_text()
        began = re.search(r"resuming at step (\d+)", text)
        found = {
            **there,
            "began": int(began[1]) if began else -1,
            "code": code,
            "warnings": re.findall(r"^.*(?:warning|rror|Traceback).*$", text, re.MULTILINE),
        }
        print(json.dumps(found), flush=True)
        kills += code < 0
        runs += code == 0  # it got to its end: the next start begins another run
    return code


if __name__ == "__main__":
    os.environ.update(ONE_RANK)
    torch.set_num_threads(1)
    processes.die_with_launcher = lambda: None
    curves.draw = lambda *_: None
    folder, requests, num_kills, seed, *flags = sys.argv[1:]
    sys.exit(main(Path(folder), Path(requests), int(num_kills), int(seed), flags))
