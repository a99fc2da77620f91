"""setup_and_train.sh in a clone whose Python is a stand-in, which stands for pip's 3 GB, too."""

import os
import subprocess
from pathlib import Path

from support.clones import clone
from support.commands import environment
from support.devices import STAND_IN

DRIVER_550 = "echo 'NVIDIA A10G, 550.54.15, 8.6, 23028'"


class Clone:
    """A clone with a stand-in for Python, and programs of the test's own first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = clone(folder / "clone")
        self.tools, self.python = folder / "tools", folder / "python"
        self.tools.mkdir()
        self.images = folder / "images"
        (self.images / "train").mkdir(parents=True)
        self.venv = self.folder / ".venv"
        self.stand_in()
        self.tool("df", "echo 100")  # a disk with room, whatever the real one has

    def stand_in(self, *changes: tuple[str, str], installed: bool = False) -> None:
        """Write the interpreter, also that of the environment if so, with words of it replaced."""
        text = STAND_IN
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        for path in [self.python, *([self.venv / "bin" / "python"] if installed else [])]:
            path.write_text(text)
            path.chmod(0o755)

    def tool(self, name: str, script: str) -> None:
        (self.tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.tools / name).chmod(0o755)

    def run(self, *flags: object, **more: str) -> subprocess.CompletedProcess:
        given = {"PATH": f"{self.tools}:{os.environ['PATH']}", "PYTHON": str(self.python), **more}
        return subprocess.run(
            ["bash", self.folder / "setup_and_train.sh", *map(str, flags)],
            env={name: value for name, value in environment(**given).items() if value},
            cwd=self.folder.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )

    def demo(self, **more: str) -> tuple[int, str]:
        """Exit code, and of a new environment, packages, and a test, what was begun: "VPT"."""
        result = self.run("--demo", **more)
        self.out = result.stdout
        commands = [line for line in self.out.splitlines() if line.startswith("+ ")]
        names = {"V": " -m venv ", "P": " -m pip install ", "T": " host.smoke_test"}
        return result.returncode, "".join(
            letter for letter, text in names.items() if any(text in line for line in commands)
        )

    def old(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob(".venv.old-*"))


def another_build(a_clone: Clone) -> None:
    a_clone.tool("nvidia-smi", DRIVER_550)


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in paths}
