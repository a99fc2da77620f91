"""The promise: a run whose machine is gone with its disk goes on elsewhere, from its mirror.

Killed at random moments of its copying, each start on an empty disk, it begins with the newest
checkpoint that is whole in the mirror, or the one before, and ends with the same bits.
"""

import json
import signal

import pytest
from support import s3_server
from support.commands import PROGRAM_PATH, finish, program_words, start
from support.kills import LAST_STEP, flags_of, straight_run
from support.runs import assert_same_end


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("num_kills", [20, pytest.param(100, marks=pytest.mark.long)])
def test_killed_while_copying_it_goes_on_from_an_empty_disk(image_folder, tmp_path, num_kills):
    disks = tmp_path / "disks"
    disks.mkdir()
    with s3_server.serve(tmp_path) as server:
        server.tell("delay 0.01")
        flags = flags_of(image_folder, disks, "--num_workers=1")
        flags = [flag for flag in flags if not str(flag).startswith("--run_dir")]
        words = program_words("die_and_be_restored", disks, server.log, num_kills, 1, *flags)
        result = finish(start(words, tmp_path, **server.environment, **PROGRAM_PATH), 1700)
    assert result.code == 0, result.err
    starts = [json.loads(line) for line in result.out.splitlines()]
    assert sum(found["code"] == -signal.SIGKILL for found in starts) == num_kills
    for number, found in enumerate(starts):
        assert not found["warnings"], found
        # The newest that is whole there, whether the pointer names it yet or not.
        assert found["began"] in found["whole"][-2:] or not found["whole"], f"{number}: {found}"
        if found["code"] == 0:
            assert_same_end(straight_run(image_folder), disks / f"{number:03d}")
    assert max(found["began"] for found in starts) > LAST_STEP / 2
