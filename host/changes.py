"""What changes a host: commands and files of the system, printed before they are touched.

Runs before there is an environment: standard library, Python 3.10.
"""

import os
import shlex
import shutil
from pathlib import Path

from host import commands
from resnet50.system import files


class HostChanges:
    """Carries out changes one by one; with dry_run only prints them."""

    def __init__(self, dry_run: bool = False) -> None:
        self.dry_run = dry_run

    def run(
        self,
        *command: str,
        may_fail: bool = False,
        limit_s: float = commands.CHANGE_S,
        own_session: bool = False,
    ) -> None:
        """Run a command without input. Unless may_fail, raises ValueError with its output."""
        print("+", shlex.join(command), flush=True)
        if self.dry_run:
            return
        # A run in tmux keeps the language.
        done = commands.run(command, limit_s, english=False, own_session=own_session)
        if done.returncode and not may_fail:
            said = (done.stderr or done.stdout).strip()
            raise ValueError(f"{shlex.join(command)} failed ({done.returncode}): {said}")

    def replace(self, path: Path, text: str) -> None:
        """Replace a file's content, whole at any time; its mode stays."""
        print(f"+ write {path}", flush=True)
        if self.dry_run:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o7777 if path.exists() else 0o644
        with files.replaced(path, "wb", sync=True) as file:
            os.fchmod(file.fileno(), mode)
            # Bytes that are not UTF-8, as a comment in fstab may hold, go back as they came.
            file.write(text.encode("utf-8", "surrogateescape"))


def can_sudo() -> bool:
    """Whether this user can become root without a password, also when a password that was given
    has been forgotten (-k: as if it had been)."""
    return bool(shutil.which("sudo")) and commands.run(["sudo", "-k", "-n", "true"]).returncode == 0


def as_root(*command: str) -> list[str]:
    """The words of a command that root carries out."""
    return [*([] if os.geteuid() == 0 else ["sudo", "-n"]), *command]
