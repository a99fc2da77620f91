"""What a test needs of the machine: where it is not there, the test skips and names it."""

import os
import shutil
from types import ModuleType

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a file system")


def needs(*programs: str) -> pytest.MarkDecorator:
    """For a test whose commands start these programs by themselves."""
    missing = [name for name in programs if not shutil.which(name)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def program(name: str) -> str:
    """A program's path; whichever test asks for one that is not installed skips here."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs {name}")
    return path


def variable(name: str, what: str) -> str:
    """What an environment variable of .ci/run says; without it, the test skips and names it."""
    value = os.environ.get(name, "")
    if not value:
        pytest.skip(f"needs {name}: {what}")
    return value


def package(name: str) -> ModuleType:
    """A package of requirements-dev.txt; tests that ask for a missing one are skipped."""
    return pytest.importorskip(name, reason=f"needs {name}")
