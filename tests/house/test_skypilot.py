"""launch/skypilot.yaml: read by SkyPilot's own parser, and its commands on machines that vanish."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import s3_server
from support.clones import clone
from support.commands import (
    REPOSITORY,
    finish,
    start,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.kills import flags_of, signal_all
from support.pictures import STEPS_PER_EPOCH
from support.runs import assert_same_end, steps_logged
from support.s3_server import BUCKET, Server

from resnet50.system import processes

YAML = REPOSITORY / "launch" / "skypilot.yaml"
EPOCHS = 40  # long enough for a signal to come before the end
PYTHON = os.environ.get("SKYPILOT_PYTHON", "")
TIMEOUT_S = 120
PARSE = """
import json, sys
import sky
from sky.utils import schemas

# On a client SkyPilot lets unknown fields of job_recovery pass; its server refuses them.
schemas._allow_additional_properties = lambda: False
task = sky.Task.from_yaml(sys.argv[1])
print(json.dumps({
    "name": task.name, "envs": task.envs, "workdir": task.workdir, "setup": task.setup,
    "run": task.run,
    "resources": [
        {"cloud": str(one.cloud), "accelerators": one.accelerators, "cpus": one.cpus,
         "use_spot": one.use_spot, "disk_size": one.disk_size, "job_recovery": one.job_recovery}
        for one in task.resources
    ],
}))
"""

needs_skypilot = pytest.mark.skipif(
    not PYTHON, reason="needs SKYPILOT_PYTHON, an interpreter that has SkyPilot"
)


def parse(path: Path, home: Path) -> subprocess.CompletedProcess:
    """Run the parser with a home folder of its own, and without usage statistics."""
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
    }
    return subprocess.run(
        [PYTHON, "-c", PARSE, str(path)],
        env=variables,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@needs_skypilot
def test_skypilot_reads_the_task_as_it_is_meant(tmp_path: Path) -> None:
    parsed = parse(YAML, tmp_path)
    assert parsed.returncode == 0, parsed.stderr
    task = json.loads(parsed.stdout.splitlines()[-1])
    assert task["name"] == "resnet50-imagenet"
    assert task["workdir"] == "."
    assert set(task["envs"]) == {"BUCKET", "AWS_REGION", "RECIPE", "PRICE_PER_HOUR"}
    assert task["envs"]["RECIPE"] == "mild28"
    # One of several GPUs, not all of them at once.
    choices = task["resources"]
    assert sorted(str(one["accelerators"]) for one in choices) == ["{'A10G': 1}", "{'L4': 1}"]
    for one in choices:
        assert (one["cloud"], one["use_spot"], one["disk_size"]) == ("AWS", True, 200)
        assert one["cpus"] == "8+"
        assert one["job_recovery"]["max_restarts_on_errors"] == 3
        assert one["job_recovery"]["recover_on_exit_codes"] == [75]
    brings = 'setup_and_train.sh --data_dir data/imagenet --data_from "s3://$BUCKET/imagenet"'
    assert brings in task["setup"] and "--only host,env" in task["setup"]
    assert brings in task["run"] and "--only data || exit" in task["run"]
    assert "train.py --data_dir data/imagenet --run_dir runs/imagenet" in task["run"]
    assert '--mirror "s3://$BUCKET/runs/imagenet"' in task["run"]


@needs_skypilot
@pytest.mark.parametrize(
    ("field", "misspelt"),
    [
        ("resources:", "resourcs:"),
        ("use_spot:", "use_spots:"),
        ("max_restarts_on_errors:", "max_restarts_on_error:"),
    ],
)
def test_skypilot_refuses_a_misspelt_field(tmp_path: Path, field: str, misspelt: str) -> None:
    text = YAML.read_text()
    assert text.count(field) == 1
    broken = tmp_path / "broken.yaml"
    broken.write_text(text.replace(field, misspelt))
    parsed = parse(broken, tmp_path)
    assert parsed.returncode != 0
    assert "InvalidSkyPilotConfigError" in parsed.stderr
    assert misspelt.rstrip(":") in parsed.stderr


@pytest.fixture(scope="module")
def bucket(packs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose bucket has the packs at imagenet/."""
    with s3_server.serve(tmp_path_factory.mktemp("s3")) as server:
        for path in packs.glob("*.pack"):
            server.put(f"imagenet/{path.name}", path.read_bytes())
        yield server


# The environment that `setup` builds, with the flags of a run that is over in seconds.
PYTHON_THERE = """\
#!/bin/bash
if [[ $1 == train.py ]]; then set -- "$@" FLAGS; fi
exec PYTHON "$@"
"""


def newest_step(server: Server) -> int:
    """Of the checkpoints in the bucket; 0 without one."""
    there = server.get("runs/imagenet/mirror.json") or b'{"copies": []}'
    return max((copy["step"] for copy in json.loads(there)["copies"]), default=0)


class Machine:
    """What SkyPilot makes of the YAML's `run` on a machine: a process group, and a folder."""

    def __init__(self, folder: Path, server: Server, *flags: object, **more: str) -> None:
        self.folder, run_dir = folder, folder / "runs" / "imagenet"
        self.run_dir = run_dir
        python = clone(folder) / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        script = PYTHON_THERE.replace("FLAGS", shlex.join(map(str, flags)))
        python.write_text(script.replace("PYTHON", sys.executable))
        python.chmod(0o755)
        lines = textwrap.dedent(YAML.read_text().partition("\nrun: |\n")[2])
        task = {"BUCKET": BUCKET, "RECIPE": "tiny", "PRICE_PER_HOUR": "0.7"}
        variables = server.environment | task | more
        self.process = start(["bash", "-c", lines], folder, **variables)

    def wait_for_step(self, server: Server, step: int) -> None:
        """Until the bucket has a checkpoint of this step or a later one."""

        def has_step() -> bool:
            time.sleep(0.2)  # the server has the machine's own requests to answer
            return newest_step(server) >= step or self.process.poll() is not None

        wait_for(has_step, what=f"step {step} in the bucket")
        assert self.process.poll() is None, self.process.communicate()

    def processes(self) -> list[int]:
        """Ids of all processes that work in its folder, whichever session they are in."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # no process, or one that has ended
                if (entry / "cwd").readlink().is_relative_to(self.folder):
                    found.append(int(entry.name))
        return found

    def trainer(self) -> int:
        """Id of the process that SkyPilot started train.py as."""
        begin = f"{sys.executable}\0train.py\0".encode()
        ours = []
        for pid in self.processes():
            with contextlib.suppress(OSError):  # it has ended
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(begin):
                    ours.append(pid)
        # The oldest: a child that it starts has its command line, too, until it executes another.
        return min(ours, key=processes.started)

    def vanish(self) -> None:
        """All processes and the disk are gone at once."""
        for signum in (signal.SIGSTOP, signal.SIGKILL):
            signal_all(self.processes(), signum)
        self.process.kill()
        self.process.communicate()
        wait_for(lambda: not self.processes(), what="the end of all processes")
        shutil.rmtree(self.folder)


def test_a_machine_that_is_gone_with_its_disk_is_replaced(bucket, packs, tmp_path):
    """One is killed, one is told to stop as by a spot notice, the third ends: the same bits."""
    places = ("--data_dir", "--run_dir", "--recipe")
    straight = tmp_path / "straight" / "run"
    straight.parent.mkdir()
    all_flags = flags_of(packs, straight, "--num_workers=1", f"--epochs={EPOCHS}")
    assert run_here(train_words(*all_flags), straight.parent).code == 0
    flags = [flag for flag in all_flags if not str(flag).startswith(places)]

    first = Machine(tmp_path / "us-east-1a", bucket, *flags)
    first.wait_for_step(bucket, 9)
    first.vanish()
    restored = newest_step(bucket)

    second = Machine(tmp_path / "us-east-1b", bucket, *flags)
    second.wait_for_step(bucket, restored + 2)  # a quick machine may copy one of many steps
    os.kill(second.trainer(), signal.SIGTERM)
    stopped = finish(second.process)
    assert stopped.code == 75, stopped.err
    assert f"restored from s3://{BUCKET}/runs/imagenet: step " in stopped.out
    second.vanish()

    third = Machine(tmp_path / "us-east-1c", bucket, *flags)
    ended = finish(third.process)
    assert ended.code == 0 and "restored from s3://" in ended.out, ended.err
    assert_same_end(straight, third.run_dir)
    assert len(steps_logged(straight)) == EPOCHS * STEPS_PER_EPOCH


def test_without_its_bucket_no_run_starts_over(bucket, tmp_path):
    machine = Machine(tmp_path / "machine", bucket, BUCKET="no-such-bucket")
    result = finish(machine.process)
    assert result.code == 2 and "there is no bucket no-such-bucket" in result.err, result.err
    assert not machine.run_dir.exists()
