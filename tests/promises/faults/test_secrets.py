"""Secrets of the environment stay there: not in a run's files, its output or a command line.

tests/export/test_hub.py searches what is sent to Hugging Face.
"""

import os
import stat
import time
from pathlib import Path

import pytest
from support.commands import finish, processes_mentioning, start, train_words
from support.kills import flags_of

pytestmark = pytest.mark.usefixtures("no_leftovers")
SECRETS = {
    "HF_TOKEN": "hf_plantedPlantedPlantedPlanted01",
    "AWS_SECRET_ACCESS_KEY": "planted/Secret+Access0Key0Planted0Planted02",
    "WANDB_API_KEY": "0123456789planted0123456789planted012345",
}


def holds_secret(content: bytes) -> bool:
    return any(value.encode() in content for value in SECRETS.values())


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""  # it has ended


def test_planted_tokens_appear_nowhere(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    flags = flags_of(image_folder, run_dir, "--num_workers=1", "--tensorboard", "--epochs=4")
    umask = os.umask(0o027)
    try:
        process = start(train_words(*flags), tmp_path, **SECRETS)
    finally:
        os.umask(umask)
    num_seen = 0
    while process.poll() is None:
        pids = processes_mentioning(str(run_dir))
        num_seen = max(num_seen, len(pids))
        assert not any(holds_secret(command_line(pid)) for pid in pids)
        time.sleep(0.02)  # looking takes as long as a step
    result = finish(process)
    assert result.code == 0, result.err
    # Supervisor, torchrun, rank, loader. "At least", because a child that was just forked still
    # shows its parent's command line.
    assert num_seen >= 4
    assert not holds_secret((result.out + result.err).encode())
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"config.json", "status.json", "log.jsonl", "metrics.csv", "best.pt"} <= names
    assert any("tfevents" in name for name in names)
    for path in files:
        assert not holds_secret(path.read_bytes()), path
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & 0o137, f"{path}: {mode:o} is more than a umask of 027 leaves"
    assert all(not stat.S_IMODE(path.parent.stat().st_mode) & 0o027 for path in files)
