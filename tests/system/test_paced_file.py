"""A file that is read with pauses: the same bytes, and each pause ends with a hurry."""

import io
import threading

from hypothesis import given
from hypothesis import strategies as st

from resnet50.system.paced_file import LONGEST_REST_S, PacedFile


class Noted(threading.Event):
    """Notes how long it was waited for, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits_s: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits_s.append(timeout)
        return self.is_set()


@given(st.binary(max_size=200), st.integers(1, 50))
def test_the_same_bytes_come_with_a_pause_after_each_block(data, size):
    hurry = Noted()
    file = PacedFile(io.BytesIO(data), hurry)
    blocks = list(iter(lambda: file.read(size), b""))
    assert b"".join(blocks) == data
    assert len(hurry.waits_s) == len(blocks)  # none before the first one
    assert all(0 <= wait_s <= LONGEST_REST_S for wait_s in hurry.waits_s)
    file.seek(0)
    assert file.read() == data and file.tell() == len(data)
