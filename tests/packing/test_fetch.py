"""Packs fetched from a web server, a folder and a bucket: whole or not at all, whatever happens."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import range_server
from range_server import RangeServer
from support.commands import (
    PROGRAM_PATH,
    Result,
    program_words,
    start,
    wait_for,
)
from support.in_process import called
from support.needs import needs_root
from support.packs import put, spoiled

from resnet50.data.pack import HEADER, PackedImages, read_header
from resnet50.packing import fetch, pack_sources, transfer

RANGE_BYTES = 2500  # about 25 ranges
NAMES = ("train.pack", "val.pack")


@pytest.fixture
def server(packs: Path) -> Iterator[RangeServer]:
    with range_server.serve(packs) as server:
        yield server


class FetchHere:
    """Calls fetch.py's main in this process, in small ranges."""

    def __init__(self, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, out: Path) -> None:
        self._capsys, self.out = capsys, out
        patch.setattr(fetch, "RANGE_BYTES", RANGE_BYTES)
        patch.setattr(fetch, "FIRST_ANSWER_S", 0.3)
        patch.setattr(transfer, "PAUSES_S", (0.05,))

    def __call__(self, data_from: object, *flags: str) -> Result:
        self._capsys.readouterr()
        words = [f"--data_from={data_from}", f"--data_dir={self.out}", "--give_up_s=1", *flags]
        code = called(fetch, words)
        said = self._capsys.readouterr()
        return Result(code, said.out, said.err)

    def assert_same(self, packs: Path) -> None:
        """Both packs are there, byte for byte, and nothing else is."""
        assert sorted(path.name for path in self.out.iterdir()) == list(NAMES)
        for name in NAMES:
            assert (self.out / name).read_bytes() == (packs / name).read_bytes()


@pytest.fixture
def fetch_here(monkeypatch, capsys, tmp_path) -> FetchHere:
    return FetchHere(monkeypatch, capsys, tmp_path / "out")


def test_both_packs_come_from_a_web_server_and_stay(fetch_here, server, packs):
    result = fetch_here(server.url)
    assert result.code == 0, result.err
    fetch_here.assert_same(packs)
    assert "all 66 images compared with their checksums" in result.out and "MB/s" in result.out
    parts = [part for part in server.asked if part[0] == "train.pack"]
    assert len(parts) > 15 and max(end - start for _, start, end in parts) <= 2 * RANGE_BYTES
    server.asked.clear()
    again = fetch_here(server.url)
    assert again.code == 0 and again.out.count("already") == 2
    assert server.bytes_asked() <= 2 * (HEADER.size + 1)
    fetch_here.assert_same(packs)


def test_they_come_from_a_folder(fetch_here, packs):
    assert fetch_here(packs).code == 0
    fetch_here.assert_same(packs)


def start_small(server: RangeServer, out: Path, *flags: str) -> subprocess.Popen:
    words = program_words(
        "fetch_in_small_ranges",
        RANGE_BYTES,
        f"--data_from={server.url}",
        f"--data_dir={out}",
        *flags,
    )
    return start(words, out.parent, **PROGRAM_PATH)


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(4, 40))]
)
def test_a_kill_costs_no_more_than_the_ranges_that_were_on_their_way(server, packs, tmp_path, seed):
    """Killed after each of some numbers of ranges, in the first pack or the second."""
    rng, out = random.Random(seed), tmp_path / "out"
    num_kills = 0
    for _ in range(4):
        server.pause_s = 0.02
        process, wanted = start_small(server, out), len(server.asked) + rng.randrange(1, 20)
        wait_for(lambda n=wanted, p=process: len(server.asked) >= n or p.poll() is not None)
        time.sleep(rng.random() * 0.05)
        num_kills += process.poll() is None
        process.kill()
        process.communicate()
    there = 0
    for name in NAMES:
        if (out / name).exists():
            there += (out / name).stat().st_size
        elif (journal := fetch.Journal(out / ".fetch" / f"{name}.ranges")).about:
            there += sum(end - start for start, end in journal.there)
    server.pause_s = 0
    server.asked.clear()
    last = start_small(server, out)
    _, err = last.communicate(timeout=60)
    assert last.returncode == 0, err
    assert num_kills >= 2
    for name in NAMES:
        assert (out / name).read_bytes() == (packs / name).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == list(NAMES)
    total = sum((packs / name).stat().st_size for name in NAMES)
    ends = sum(overhead(packs / name) for name in NAMES)
    assert server.bytes_asked() <= total - there + ends


def overhead(path: Path) -> int:
    """Bytes of a pack that are no records: they may be asked for again, and its header is."""
    header = read_header(path.read_bytes()[: HEADER.size], path)
    return header.records_offset + header.file_bytes - header.index_offset + HEADER.size + 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_as_resumable(server, packs, tmp_path, signum):
    server.pause_s, out = 0.2, tmp_path / "out"
    process = start_small(server, out)
    wait_for(lambda: len(server.asked) > 8)
    process.send_signal(signum)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75 and "the same command goes on" in err
    assert "Traceback" not in err and not (out / "val.pack").exists()


def test_what_the_network_damages_is_fetched_again(fetch_here, server, packs):
    """In the header and the index too, each once."""
    index_at = read_header((packs / "train.pack").read_bytes()[: HEADER.size], "").index_offset
    for place in (100, 20_000, index_at + 5):
        shutil.rmtree(fetch_here.out, ignore_errors=True)
        server.damaged, server.num_damaged = {"train.pack": [place]}, 1
        result = fetch_here(server.url)
        assert result.code == 0, result.err
        fetch_here.assert_same(packs)
        assert place != 20_000 or "its payload fails its checksum; fetching it again" in result.err


def places_in(path: Path) -> list[tuple[int, str]]:
    """Places in a pack, with what is said when the byte there is another one."""
    pack = PackedImages(path)
    header = read_header(path.read_bytes()[: HEADER.size], path)
    places = [
        (3, "does not begin like a pack"),
        (30, "its header fails its checksum"),
        (HEADER.size + 5, "its JSON fails its checksum"),
        (header.index_offset + 40, "its index at"),
    ]
    for image in (0, 7, len(pack) - 1):
        offset, size = int(pack._index["offset"][image]), int(pack._index["size"][image])
        name = pack.name(image).partition(":")[2]
        places.append((offset + size - 1, f"{name}: its payload fails its checksum"))
        places.append((offset + 5, f"image {image}: its record fails its checksum"))
    return places


def test_damage_at_the_source_is_named_and_no_pack_is_made(fetch_here, server, packs):
    """Header, JSON, index, tables, payloads."""
    for place, message in places_in(packs / "train.pack"):
        shutil.rmtree(fetch_here.out, ignore_errors=True)
        server.damaged = {"train.pack": [place]}
        result = fetch_here(server.url)
        assert result.code == 2 and message in result.err, (place, result)
        assert f"{server.url}/train.pack" in result.err and "Traceback" not in result.err
        assert not (fetch_here.out / "train.pack").exists()


def test_what_was_damaged_between_two_starts_is_fetched_again(fetch_here, server, packs):
    server.damaged = {"train.pack": [places_in(packs / "train.pack")[-2][0]]}
    assert fetch_here(server.url).code == 2
    partial = fetch_here.out / ".fetch" / "train.pack"
    whole = (packs / "train.pack").read_bytes()
    data = bytearray(partial.read_bytes())
    place = places_in(packs / "train.pack")[4][0]
    assert data[place] == whole[place] and len(data) == len(whole)
    partial.write_bytes(bytes(data[:place]) + b"\0" * 50 + bytes(data[place + 50 :]))
    server.damaged = {}
    server.asked.clear()
    result = fetch_here(server.url)
    assert result.code == 0 and "ranges are here" in result.err, result.err
    fetch_here.assert_same(packs)


def test_a_source_that_is_replaced_meanwhile_is_named(fetch_here, packs, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(packs, source)
    with range_server.serve(source) as server:
        original = server.part

        def part(name: str, start: int, end: int) -> bytes:
            if start > 20_000:
                shutil.copy(packs / "val.pack", source / "train.pack")
            return original(name, start, end)

        server.part = part
        result = fetch_here(server.url)
    assert result.code == 2 and "was replaced while it was fetched" in result.err, result.err


def test_another_pack_is_never_replaced(fetch_here, server, packs, tmp_path):
    """Nor what an interrupted start has brought of another one."""
    fetch_here.out.mkdir()
    shutil.copy(packs / "val.pack", fetch_here.out / "train.pack")
    before = (fetch_here.out / "train.pack").read_bytes()
    result = fetch_here(server.url)
    assert result.code == 2 and "train.pack there is not the pack of" in result.err
    assert "is not replaced" in result.err and not (fetch_here.out / "val.pack").exists()
    assert (fetch_here.out / "train.pack").read_bytes() == before
    shutil.rmtree(fetch_here.out)
    server.damaged = {"train.pack": [20_000]}
    assert fetch_here(server.url).code == 2
    other = tmp_path / "other"
    other.mkdir()
    for name in NAMES:
        shutil.copy(packs / "val.pack", other / name)
    result = fetch_here(other)
    assert result.code == 2 and "is part of another pack" in result.err, result.err
    server.damaged = {}
    assert fetch_here(server.url).code == 0


def test_a_damaged_pack_that_is_there_is_named_and_kept(fetch_here, server, packs):
    fetch_here.out.mkdir()
    place = fetch_here.out / "train.pack"
    spoiled(packs / "train.pack", place, put(HEADER.size + 5, b"\xff"))
    before = place.read_bytes()
    result = fetch_here(server.url)
    assert result.code == 2 and f"{place}: its JSON fails its checksum" in result.err
    assert place.read_bytes() == before


def test_a_server_that_breaks_off_is_asked_for_the_rest(fetch_here, server, packs):
    server.cut_after = 30  # of the header, too
    result = fetch_here(server.url)
    assert result.code == 75 and "the connection ended early" in result.err, result.err
    server.cut_after = 1000
    server.asked.clear()
    result = fetch_here(server.url, "--give_up_s=20")
    assert result.code == 0, result.err
    fetch_here.assert_same(packs)
    total = sum((packs / name).stat().st_size for name in NAMES)
    assert len(server.asked) > total / 1000 - 20


def test_a_server_that_stops_in_the_middle_ends_it_and_it_goes_on(fetch_here, server, packs):
    """It answers 503 after some ranges, then sends nothing at all, then is back."""
    original, count = server.part, iter(range(1000))

    def part(name: str, start: int, end: int) -> bytes:
        server.error = 503 if next(count) > 8 else 0
        return original(name, start, end)

    server.part = part
    result = fetch_here(server.url)
    assert result.code == 75 and "answers 503" in result.err, result.err
    assert "nothing has come for" in result.err and "the same command goes on" in result.err
    server.part, server.error = original, 0
    result = fetch_here(server.url)
    assert result.code == 0 and "ranges are here" in result.err
    fetch_here.assert_same(packs)


def test_a_server_that_never_answers_ends_it_in_time(fetch_here, server, monkeypatch):
    monkeypatch.setattr(pack_sources, "TIMEOUT_S", 0.2)
    server.pause_s = 5
    begin_s = time.monotonic()
    result = fetch_here(server.url)
    assert result.code == 75 and "no answer within" in result.err, result.err
    assert time.monotonic() - begin_s < 5


def test_if_the_source_is_gone_whole_packs_are_used_as_they_are(fetch_here, server):
    assert fetch_here(server.url).code == 0
    server.error = 503
    result = fetch_here(server.url)
    assert result.code == 0 and "warning: " in result.err and "used as they are" in result.err
    (fetch_here.out / "val.pack").unlink()
    assert fetch_here(server.url).code == 75


@pytest.mark.parametrize(
    "url, code, message",
    [
        ("{url}/other", 2, "the server answers 404 Not Found: does --data_from name the folder"),
        ("http://127.0.0.1:9/imagenet", 75, "http://127.0.0.1:9/imagenet/train.pack: "),
        ("http://no.such.host.invalid/x", 75, "http://no.such.host.invalid/x/train.pack: "),
        ("http://me:secret@127.0.0.1:9/x", 2, "leave user and password out of the URL"),
        ("{url}/?signature=1", 2, "give the URL of a folder, without ? and #"),
        ("ftp://host/x", 2, "--data_from ftp://...: give s3://BUCKET/PREFIX, https://HOST/FOLDER"),
        ("/no/such/folder", 2, "--data_from /no/such/folder"),
        ("/tmp", 2, "--data_from /tmp: there is no train.pack: give the folder that holds"),
        ("", 2, "--data_from is empty"),
    ],
)
def test_a_wrong_url_is_named(fetch_here, server, url, code, message):
    result = fetch_here(url.format(url=server.url))
    assert result.code == code and message in result.err, result.err
    assert "secret" not in result.err and "Traceback" not in result.err
    assert not fetch_here.out.exists()


def test_a_server_without_ranges_and_one_that_refuses_are_named(fetch_here, server):
    server.sends_parts = False
    result = fetch_here(server.url)
    assert result.code == 2 and "the server sends no parts of files" in result.err
    server.error = 403
    result = fetch_here(server.url)
    assert result.code == 2 and "answers 403" in result.err and "may anyone read it" in result.err


def test_a_pack_that_was_cut_at_the_source_is_named(fetch_here, packs, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(packs / "val.pack", source)
    (source / "train.pack").write_bytes((packs / "train.pack").read_bytes()[:-7])
    result = fetch_here(source)
    assert result.code == 2 and "bytes, " in result.err and "were written" in result.err
    assert not fetch_here.out.exists()


def fill(path: Path) -> None:
    """Write into a file until its disk is full."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


@pytest.fixture
def small_disk(packs, tmp_path) -> Iterator[Path]:
    """A folder on a disk with room for both packs, and not much more."""
    out = tmp_path / "out"
    out.mkdir()
    total = sum((packs / name).stat().st_size for name in NAMES)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={total + 200_000}", "tmpfs", out]
    subprocess.run(mount, check=True)
    yield out
    subprocess.run(["umount", "--lazy", out], check=True)


@needs_root
def test_a_full_disk_is_named_before_and_in_the_middle(server, packs, small_disk):
    """Room is looked for first; where others take it meanwhile, what has come stays."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(250_000))
    result = run_small(server, small_disk)
    assert result.code == 2 and "GB have yet to come" in result.err, result.err
    assert os.listdir(small_disk) == ["filler"]
    filler.unlink()
    server.pause_s = 0.1
    process = start_small(server, small_disk)
    wait_for(lambda: len(server.asked) > 16)
    fill(filler)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "No space left on device" in err, err
    assert f"--data_dir {small_disk}" in err and "the same command goes on" in err
    filler.unlink()
    server.pause_s = 0
    result = run_small(server, small_disk)
    assert result.code == 0 and "ranges are here" in result.err, result.err
    for name in NAMES:
        assert (small_disk / name).read_bytes() == (packs / name).read_bytes()


def run_small(server: RangeServer, out: Path) -> Result:
    process = start_small(server, out)
    stdout, err = process.communicate(timeout=60)
    return Result(process.returncode, stdout, err)


def test_a_second_one_in_the_same_folder_is_refused(server, tmp_path):
    server.pause_s, out = 0.2, tmp_path / "out"
    first = start_small(server, out)
    wait_for(lambda: len(server.asked) > 8)
    second = run_small(server, out)
    assert second.code == 2 and f"--data_dir {out} is in use by process {first.pid}" in second.err
    first.kill()
    first.communicate()
