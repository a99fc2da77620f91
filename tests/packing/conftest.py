"""What several tests of packing use."""

import sys
from pathlib import Path

import pytest
from support.commands import REPOSITORY, run


@pytest.fixture(scope="module")
def packs(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packs of the small data set. Do not write into it."""
    out = tmp_path_factory.mktemp("packs") / "imagenet"
    script = REPOSITORY / "prepare_data.py"
    result = run(
        [sys.executable, script, image_folder, f"--out={out}", "--num_workers=1"], out.parent
    )
    assert result.code == 0, result.err
    return out
