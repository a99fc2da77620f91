"""Commands called in this process: a subprocess would take seconds to import torch."""

import hashlib
import importlib
import io
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.commands import ONE_RANK, REPOSITORY, Result

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def be_rank(patch: pytest.MonkeyPatch) -> None:
    """A lone rank, as torchrun starts it; without pytest as its parent, and without its stderr."""
    for name, value in ONE_RANK.items():
        patch.setenv(name, value)
    patch.setattr("resnet50.system.processes.die_with_launcher", lambda: None)
    patch.setattr("faulthandler.register", lambda _: None)
    patch.setattr("resnet50.records.curves.draw", lambda *_: None)  # half of a tiny run's time


def called(command: ModuleType, flags: Sequence[object]) -> int:
    """The exit code of a command's main(), which may replace signal handlers: they are restored."""
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        return command.main([str(flag) for flag in flags])
    except SystemExit as end:  # argparse's
        return end.code
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def run_here(words: Sequence[object], cwd: Path, *, as_rank: bool = True) -> Result:
    """`run` of support/commands.py in this process; train.py is a lone rank.

    For what nothing interrupts: a run to compare with, the resume after a kill, a refusal.
    as_rank: else train.py is the supervisor, which must refuse: it would start torchrun.
    """
    _, script, *flags = words
    assert script.parent == REPOSITORY
    command = importlib.import_module(script.stem)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.delenv("IMAGENET_DIR", raising=False)
        torch.set_num_threads(1)  # app.py, called here before, may have set more: other bits
        if script.stem == "train" and as_rank:
            be_rank(patch)
        code = called(command, flags)
    return Result(code, out.getvalue(), err.getvalue())


class InProcess:
    """Calls main() of a command, as the fixture `in_process`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        self.monkeypatch, self._capsys = monkeypatch, capsys
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def __call__(self, command: ModuleType, *flags: object, as_rank: bool = False) -> Result:
        """as_rank: as a lone rank of torchrun; else train.py would start torchrun."""
        self._capsys.readouterr()
        with self.monkeypatch.context() as patch:
            if as_rank:
                be_rank(patch)
            code = called(command, flags)
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
