"""launch/skypilot.yaml: read by SkyPilot's own parser, and what it runs, with folders for S3."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.clones import clone
from support.commands import REPOSITORY, environment
from support.runs import status_of

YAML = REPOSITORY / "launch" / "skypilot.yaml"
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
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
    }
    return subprocess.run(
        [PYTHON, "-c", PARSE, str(path)],
        env=environment,
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
    assert set(task["envs"]) == {"BUCKET", "RECIPE", "PRICE_PER_HOUR"}
    assert task["envs"]["RECIPE"] == "mild28"
    # One of several GPUs, not all of them at once.
    choices = task["resources"]
    assert sorted(str(one["accelerators"]) for one in choices) == ["{'A10G': 1}", "{'L4': 1}"]
    for one in choices:
        assert (one["cloud"], one["use_spot"], one["disk_size"]) == ("AWS", True, 200)
        assert one["cpus"] == "8+"
        assert one["job_recovery"]["max_restarts_on_errors"] == 3
        assert one["job_recovery"]["recover_on_exit_codes"] == [75]
    assert "setup_and_train.sh --data_dir data/imagenet" in task["setup"]
    assert "train.py --data_dir data/imagenet --run_dir runs/imagenet" in task["run"]


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


# `aws s3 sync` between a folder and s3://, which is a folder here; fails where the bucket is not.
AWS = """\
#!/bin/bash
folders=()
for word in "${@:3}"; do
    case $word in
        s3://*) folders+=("$BUCKETS/${word#s3://}") && [[ -d $BUCKETS/$BUCKET ]] || exit 1 ;;
        --delete) delete=yes ;;
        --* | *.partial) ;;
        *) folders+=("$word") ;;
    esac
done
[[ -d ${folders[0]} ]] || exit 0
[[ -z $delete ]] || rm -rf "${folders[1]}"
mkdir -p "${folders[1]}" && cp -r "${folders[0]}/." "${folders[1]}"
"""


def test_what_runs_there_restores_trains_and_copies_back(
    image_folder: Path, tmp_path: Path
) -> None:
    """A second machine resumes where the first ended; without the bucket, none starts over."""
    buckets, stubs = tmp_path / "buckets", tmp_path / "bin"
    stubs.mkdir()
    (stubs / "aws").write_text(AWS)
    (stubs / "aws").chmod(0o755)
    script = textwrap.dedent(YAML.read_text().partition("run: |\n")[2])
    script = script.replace("sleep 300", "sleep 0.5")

    def machine(name: str, max_steps: int) -> subprocess.CompletedProcess:
        workdir = clone(tmp_path / name)
        (workdir / ".venv" / "bin").mkdir(parents=True)
        python = workdir / ".venv" / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" --max_steps={max_steps}\n')
        python.chmod(0o755)
        (workdir / "data").mkdir(exist_ok=True)
        (workdir / "data" / "imagenet").symlink_to(image_folder)
        more = {"BUCKET": "my-bucket", "RECIPE": "tiny", "PRICE_PER_HOUR": "0.7"}
        more |= {"BUCKETS": str(buckets), "PATH": f"{stubs}:{os.environ['PATH']}"}
        return subprocess.run(
            ["bash", "-c", script],
            env=environment(**more),
            cwd=workdir,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    refused = machine("without", 4)
    assert refused.returncode == 1 and not refused.stdout, refused.stdout
    (buckets / "my-bucket").mkdir(parents=True)
    first = machine("first", 4)
    assert first.returncode == 0, first.stderr
    run_dir = buckets / "my-bucket" / "runs" / "imagenet"
    assert status_of(run_dir)["step"] == 4
    second = machine("second", 8)
    assert second.returncode == 0 and "resuming at step 4" in second.stdout, second.stderr
    assert status_of(run_dir)["step"] == 8
