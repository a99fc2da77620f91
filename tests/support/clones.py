"""A clone of this repository as a user would have it, for scripts that change theirs."""

import shutil
import subprocess
from pathlib import Path

from support.commands import REPOSITORY


def clone(folder: Path) -> Path:
    """The files of the repository that git would give a user, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    return folder
