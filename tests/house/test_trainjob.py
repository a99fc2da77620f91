"""launch/trainjob.yaml: read with the classes of Kubeflow's schema; and its script, on a folder."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.clones import clone
from support.commands import REPOSITORY, finish, start, wait_for
from support.needs import needs_kubeflow
from support.runs import status_of, steps_logged

from resnet50.records import status

YAML = REPOSITORY / "launch" / "trainjob.yaml"
PYTHON = os.environ.get("KUBEFLOW_PYTHON", "")
# The classes drop what they do not know: a field that is missing afterwards was misspelt.
PARSE = """
import json, sys
import kubeflow_trainer_api.models as models
import yaml

def differences(a, b, place):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a:
            if key not in b:
                yield f"{place}.{key} is not in the schema"
            else:
                yield from differences(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for number, (one, other) in enumerate(zip(a, b)):
            yield from differences(one, other, f"{place}[{number}]")
    elif a != b:
        yield f"{place}: {a!r} became {b!r}"

documents = list(yaml.safe_load_all(open(sys.argv[1])))
for document in documents:
    kind = getattr(models, "TrainerV1alpha1" + document["kind"])
    found = list(differences(document, kind.from_dict(document).to_dict(), document["kind"]))
    if found:
        sys.exit("\\n".join(found))
print(json.dumps(documents))
"""


def parse(path: Path) -> subprocess.CompletedProcess:
    words = [PYTHON, "-c", PARSE, str(path)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


@needs_kubeflow
def test_kubeflow_reads_it_as_it_is_meant() -> None:
    parsed = parse(YAML)
    assert parsed.returncode == 0, parsed.stderr
    runtime, job = json.loads(parsed.stdout)
    assert job["spec"]["runtimeRef"]["kind"] == runtime["kind"]
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    label = node["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"]
    assert (node["name"], label) == ("node", "trainer")  # by which the job's command finds it
    rules = node["template"]["spec"]["podFailurePolicy"]["rules"]
    by_code = {
        code: rule["action"]
        for rule in rules
        for code in rule.get("onExitCodes", {"values": []})["values"]
    }
    resumable = status.EXIT_CODES[status.INTERRUPTED]
    final = {code for code in status.EXIT_CODES.values() if code not in (0, resumable)}
    assert by_code == {resumable: "Ignore", **dict.fromkeys({1, *final}, "FailJob")}
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] > 60
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert set(mounts.values()) == {"/volume", "/dev/shm"}


@needs_kubeflow
@pytest.mark.parametrize(
    ("field", "misspelt"),
    [
        ("runtimeRef:", "runtimeReference:"),
        ("podFailurePolicy:", "podFailurePolicies:"),
        ("terminationGracePeriodSeconds: 120", "terminationGracePeriodSeconds: 2m"),
    ],
)
def test_the_schema_refuses_a_misspelt_field(tmp_path: Path, field: str, misspelt: str) -> None:
    text = YAML.read_text()
    assert text.count(field) == 1
    (tmp_path / "broken.yaml").write_text(text.replace(field, misspelt))
    parsed = parse(tmp_path / "broken.yaml")
    assert parsed.returncode != 0
    assert field.split(":")[0] in parsed.stderr or misspelt[:-1] in parsed.stderr


@needs_kubeflow
def test_what_runs_there_saves_when_its_pod_is_evicted(image_folder: Path, tmp_path: Path) -> None:
    """The kubelet signals the first process; a second pod resumes, and is done."""
    _, job = json.loads(parse(YAML).stdout)
    trainer = job["spec"]["trainer"]
    volume, run_dir = tmp_path / "volume", tmp_path / "volume" / "runs" / "imagenet"
    folder = clone(volume / "ResNet50_ImageNet1K_Training")
    (volume / "imagenet").symlink_to(image_folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    setup = folder / "setup_and_train.sh"

    def pod(*flags: str) -> subprocess.Popen:
        script = trainer["args"][0].replace("/volume", str(volume)).rstrip()
        variables = {one["name"]: one["value"] for one in trainer["env"]} | {"RECIPE": "tiny"}
        return start([*trainer["command"], " ".join([script, *flags])], tmp_path, **variables)

    setup.write_text("exit 1\n")  # no network: no rule of the job's knows 70, so it is tried again
    assert finish(pod()).code == 70 and not run_dir.exists()
    setup.write_text("exit 0\n")  # the environment is there
    first = pod("--epochs=5000", "--save_every_steps=0", "--log_every_steps=1")
    wait_for(lambda: len(steps_logged(run_dir)) > 3)
    first.send_signal(signal.SIGTERM)
    told = finish(first)
    assert told.code == 75 and "Traceback" not in told.err, told.err
    step = status_of(run_dir)["step"]
    second = finish(pod(f"--max_steps={step + 4}"))
    assert second.code == 0 and f"resuming at step {step} " in second.out, second.err
