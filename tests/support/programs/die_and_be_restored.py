"""Starts one training again and again, each time on a new disk, and kills it while it copies.

    python die_and_be_restored.py FOLDER REQUESTS NUM_KILLS SEED FLAG...

FOLDER gets one run folder a start, numbered; REQUESTS is the server's log, whose lines tell when a
copy is under way. FLAG...: of train.py, with its --mirror. Prints a line of JSON for each start:
what lay in the mirror before it, and where it began. The last one is not killed. Each is forked,
since importing torch takes longer than a start has to live.
"""

import contextlib
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


def main(folder: Path, requests: Path, num_kills: int, seed: int, flags: list[str]) -> int:
    rng = random.Random(seed)
    url = next(flag for flag in flags if flag.startswith("--mirror=")).partition("=")[2]
    for number in range(num_kills + 1):
        run_dir = folder / f"{number:03d}"
        there = steps_there(url)
        begin_bytes = requests.stat().st_size
        pid = begin(run_dir, flags)
        num_copies, pause_s = rng.randrange(3, 14), rng.random() * 0.03
        while number < num_kills and os.waitpid(pid, os.WNOHANG)[0] == 0:
            if copies_under_way(requests, begin_bytes) >= num_copies:
                time.sleep(pause_s)
                break
            time.sleep(0.002)
        if number < num_kills:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            code = -signal.SIGKILL
        else:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        text = Path(f"{run_dir}.out").read_text()
        began = re.search(r"resuming at step (\d+)", text)
        print(
            json.dumps(
                {
                    **there,
                    "began": int(began[1]) if began else -1,
                    "has_trained": "resuming at step" in text or "loss" in text,
                    "code": code,
                    "warnings": re.findall(r"^.*(?:warning|rror|Traceback).*$", text, re.MULTILINE),
                }
            ),
            flush=True,
        )
    return 0


if __name__ == "__main__":
    os.environ.update(ONE_RANK)
    torch.set_num_threads(1)
    processes.die_with_launcher = lambda: None
    curves.draw = lambda *_: None
    folder, requests, num_kills, seed, *flags = sys.argv[1:]
    sys.exit(main(Path(folder), Path(requests), int(num_kills), int(seed), flags))
