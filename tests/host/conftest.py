"""A run that trains, as far as host/ sees."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import PROGRAM_PATH, start

# What keeps a run folder as a supervisor does, under any name.
HOLDER = """\
import sys, time
from pathlib import Path
from resnet50.records import status
from resnet50.system.locking import FolderLock
lock = FolderLock(Path(sys.argv[1]), status.SUPERVISOR_LOCK)
now = str(time.time())
status.write_status(Path(sys.argv[1]), state=status.RUNNING, attempt=now, step=1, stop_step=9)
print("holds", flush=True)
time.sleep(300)
"""


@pytest.fixture
def holder_script(tmp_path) -> Path:
    """The program, as train.py."""
    (tmp_path / "train.py").write_text(HOLDER)
    return tmp_path / "train.py"


@pytest.fixture
def hold(tmp_path, no_leftovers):
    """Starts a holder whose script has this name."""
    holders = []

    def start_holder(name: str, run_dir: Path) -> subprocess.Popen:
        script = tmp_path / name
        script.write_text(HOLDER)
        holders.append(start([sys.executable, script, run_dir], tmp_path, **PROGRAM_PATH))
        assert holders[-1].stdout.readline() == "holds\n"
        return holders[-1]

    yield start_holder
    for holder in holders:
        holder.kill()
        holder.communicate()
