"""Commands called in this process: a subprocess would take seconds to import torch."""

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from support.commands import ONE_RANK, Result

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def be_rank(patch: pytest.MonkeyPatch) -> None:
    """A lone rank, as torchrun starts it; without pytest as its parent, and without its stderr."""
    for name, value in ONE_RANK.items():
        patch.setenv(name, value)
    patch.setattr("resnet50.system.processes.die_with_launcher", lambda: None)
    patch.setattr("faulthandler.register", lambda _: None)
    patch.setattr("resnet50.records.curves.draw", lambda *_: None)  # half of a tiny run's time


class InProcess:
    """Calls main() of a command, and restores the signal handlers that it replaces."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        self.monkeypatch, self._capsys = monkeypatch, capsys
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def __call__(self, command: ModuleType, *flags: object, as_rank: bool = False) -> Result:
        """as_rank: as a lone rank of torchrun; else train.py would start torchrun."""
        handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self._capsys.readouterr()
        with self.monkeypatch.context() as patch:
            if as_rank:
                be_rank(patch)
            try:
                code = command.main([str(flag) for flag in flags])
            except SystemExit as end:  # argparse's
                code = end.code
            finally:
                for signum, handler in handlers.items():
                    signal.signal(signum, handler)
        said = self._capsys.readouterr()
        return Result(code, said.out, said.err)


def tree(folder: Path) -> dict[str, str]:
    """Everything in a folder, by path: the hash of a file, "folder", or where a link points."""
    return {str(path.relative_to(folder)): what_is(path) for path in walk(folder)}


def walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from walk(path)


def what_is(path: Path) -> str:
    if path.is_symlink():
        return f"-> {os.readlink(path)}"  # noqa: PTH115 (the text of the link)
    return "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
