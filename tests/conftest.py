"""Options, and the fixtures that many tests share; what tests import is in support/."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

pytest.register_assert_rewrite("support")

from support import metadata_service  # noqa: E402 (asserts in it are to be explained)
from support.commands import REPOSITORY, processes_mentioning, run  # noqa: E402
from support.in_process import InProcess  # noqa: E402
from support.pictures import TRAIN_PER_CLASS, VAL_PER_CLASS, make_folder  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the fault tests with full counts")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_configure(config: pytest.Config) -> None:
    # One thread: what the tests compare bit by bit must not depend on the machine's cores.
    torch.set_num_threads(1)
    if config.option.markexpr != "gpu":  # nor on its GPUs, which test_gpu.py is for
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    settings.register_profile("no deadline", deadline=None)  # tests do not measure speed
    settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three classes, 66 training and 21 validation images. Do not write into it."""
    return make_folder(tmp_path_factory.mktemp("images"), TRAIN_PER_CLASS, VAL_PER_CLASS)


@pytest.fixture(scope="session")
def packs(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packs of the small data set. Do not write into it."""
    out = tmp_path_factory.mktemp("packs") / "imagenet"
    script = REPOSITORY / "prepare_data.py"
    result = run(
        [sys.executable, script, image_folder, f"--out={out}", "--num_workers=1"], out.parent
    )
    assert result.code == 0, result.err
    return out


@pytest.fixture
def no_leftovers(tmp_path: Path) -> Iterator[None]:
    """Fails a test that leaves processes of its own folder behind, and ends them."""
    yield
    leftovers = processes_mentioning(str(tmp_path))
    for pid in leftovers:
        os.kill(pid, signal.SIGKILL)
    assert not leftovers, f"processes left running: {leftovers}"


@pytest.fixture
def service() -> Iterator[metadata_service.FakeService]:
    """EC2's metadata service, for what asks it."""
    with metadata_service.serve() as service:
        yield service


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> InProcess:
    """Calls a command's main() in this process."""
    return InProcess(monkeypatch, capsys)
