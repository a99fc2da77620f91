"""A damaged newest checkpoint of a real run: whatever is wrong is noticed, and the one before is
taken.

tests/records/test_checkpoint.py flips 1,000 bits of a small file and cuts it at 200 places;
tests/promises/test_resume.py ends a run whose newest file was cut, bit for bit.
"""

import random
import shutil

import pytest
import torch
from support.kills import straight_run
from support.runs import newest_checkpoint

from resnet50.records import checkpoint


@pytest.mark.parametrize(
    "num_flips, num_cuts", [(100, 20), pytest.param(1000, 200, marks=pytest.mark.long)]
)
def test_every_flip_and_every_cut_leads_to_the_checkpoint_before(
    image_folder, tmp_path, num_flips, num_cuts
):
    straight = straight_run(image_folder) / "checkpoints"
    for step in checkpoint.steps_in(straight):
        shutil.copy(checkpoint.step_path(straight, step), tmp_path)
    *_, before, newest = checkpoint.steps_in(tmp_path)
    path = checkpoint.step_path(tmp_path, newest)
    good, rng = path.read_bytes(), random.Random(0)

    def falls_back() -> bool:
        return checkpoint.recover_newest(tmp_path, print, may_rename=False) == before

    with open(path, "r+b", buffering=0) as file:
        for bit in rng.sample(range(8 * len(good)), num_flips):
            at = bit // 8
            file.seek(at)
            file.write(bytes([good[at] ^ 1 << bit % 8]))
            assert falls_back(), f"bit {bit}"
            file.seek(at)
            file.write(good[at : at + 1])
    assert checkpoint.recover_newest(tmp_path, print, may_rename=False) == newest
    for size in rng.sample(range(len(good)), num_cuts):
        path.write_bytes(good[:size])
        assert falls_back(), f"cut to {size} bytes"


def test_the_checkpoints_of_a_run_hold_tensors_and_plain_values_only(image_folder):
    """What torch.load would have to import to read them: nothing."""
    folder = straight_run(image_folder) / "checkpoints"
    paths = sorted(folder.glob("*.pt"))
    assert folder / checkpoint.BEST in paths and len(paths) == 4
    assert newest_checkpoint(folder.parent) in paths
    for path in paths:
        assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
