"""Packs cut into ranges, and the journal of those that are there."""

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from resnet50.packing.ranges import Journal, Range, cut, pieces

SIZES = st.lists(st.integers(2, 60), max_size=40)  # a record begins with two bytes


@given(SIZES, st.integers(0, 50), st.integers(0, 50), st.integers(1, 100), st.randoms())
def test_ranges_hold_every_byte_once_and_only_whole_records(sizes, before, gap, range_bytes, rng):
    """Whatever the order of the images, with room before the first record and after the last."""
    start = 64
    begins = start + before + np.cumsum([0, *sizes], dtype=np.int64)
    places = list(zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True))
    end = int(begins[-1]) + gap
    rng.shuffle(places)
    ranges = cut(np.array([at for at, _ in places], "<u8"), start, end, range_bytes)
    assert [one.end for one in ranges[:-1]] == [one.start for one in ranges[1:]]
    assert not ranges or (ranges[0].start, ranges[-1].end) == (start, end)
    assert ranges or start == end
    assert sorted(i for one in ranges for i in one.images) == list(range(len(places)))
    for one in ranges:
        assert all(one.start <= places[i][0] <= places[i][1] <= one.end for i in one.images)
        assert one.end - one.start <= range_bytes or len(one.images) <= 1


@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 40))
def test_pieces_hold_every_byte_once(start, length, piece_bytes):
    parts = pieces(start, start + length, piece_bytes)
    covered = [at for part in parts for at in range(part.start, part.end)]
    assert covered == list(range(start, start + length))
    assert all(0 < part.end - part.start <= piece_bytes for part in parts)


@given(st.data(), st.integers(0, 12))
def test_a_journal_that_was_cut_anywhere_is_continued(tmp_path_factory, data, num_ranges):
    """What it still says is true, and what is added then is read again."""
    path = tmp_path_factory.mktemp("journal") / "train.pack.ranges"
    about = {"url": "s3://bucket/imagenet/train.pack", "header": "52"}
    ranges = [Range(100 * i, 100 * i + 100) for i in range(num_ranges)]
    journal = Journal(path)
    journal.begin(about)
    for one in ranges:
        journal.add(one)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)), label="bytes left")])
    again = Journal(path)
    assert again.about in ({}, about)
    known = [(one.start, one.end) for one in ranges]
    assert again.there == set(known[: len(again.there)])
    again.begin(about)
    again.add(Range(7, 8))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == about and len(lines) == len(again.there) + 2
    assert Journal(path).there == again.there | {(7, 8)}


def test_a_journal_of_something_else_is_an_empty_one(tmp_path: Path):
    path = tmp_path / "train.pack.ranges"
    for text in (b"\xff\xfe", b"[1]\n2\n", b"{}\n", b'{"a": 1}\n{"b": 2}\n', b"\n\n"):
        path.write_bytes(text)
        journal = Journal(path)
        assert journal.about == {} and journal.there == set()
