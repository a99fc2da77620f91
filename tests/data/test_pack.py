"""The packed file: as its docstring says, checked when opened, never another image's pixels."""

import base64
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.commands import run_program
from support.jpegs import encoded, pillow
from support.packs import put, put_version, spoiled
from support.pictures import CLASSES

from resnet50.data import jpeg
from resnet50.data import pack as packed_images
from resnet50.data.pack import DamagedPackError, PackedImages
from resnet50.data.tiles import encode_tiles
from resnet50.packing import encode
from resnet50.packing.data_set import Picture
from resnet50.packing.encode import Encoding, SplitJob

NUM_IMAGES = 6
LEVELS = "levels"


def make_pack(path: Path, store: str = "tiles", num_images: int = NUM_IMAGES, **sizes) -> Path:
    """Images 0, 1, 2.. of test_jpeg, two a class."""
    pictures = [Picture(f"{CLASSES[i // 2]}/{i}.jpg", i // 2, i) for i in range(num_images)]
    if store == LEVELS:  # pictures of 163 to 220 pixels: some get one, some get two
        store, sizes = "tiles", {"levels": (140, 48)}
    encoding = Encoding(store=store, **sizes)
    job = SplitJob("train", pictures, CLASSES[: num_images // 2], read, encoding)
    encode.pack_split(job, path, 1)
    return path


def read(seed: int) -> bytes:
    return encoded(seed, "4:2:0")


@pytest.fixture(scope="module", params=["tiles", "original", LEVELS])
def pack_path(request, tmp_path_factory) -> Path:
    return make_pack(tmp_path_factory.mktemp(request.param) / "train.pack", request.param)


def test_what_was_written_is_read(pack_path):
    pack = PackedImages(pack_path)
    assert len(pack) == NUM_IMAGES and pack.classes == CLASSES
    assert pack.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert pack.name(3) == f"{pack_path}:bee/3.jpg"
    for i in range(NUM_IMAGES):
        original = pillow(read(i))
        height, width = original.shape[:2]
        assert pack.sizes[i].tolist() == [width, height] == list(pack.open(i).size)
        assert pack.open(i).pixels().shape == original.shape
        crop = pack.open(i).crop(5, 8, 46, 40)
        assert np.abs(crop.astype(int) - original[8:40, 5:46]).mean() < 20
        if pack.store == "original":
            assert np.array_equal(crop, original[8:40, 5:46])
        assert pack.find_fault(i) is None


@pytest.fixture(scope="module")
def leveled(tmp_path_factory) -> Path:
    return make_pack(tmp_path_factory.mktemp(LEVELS) / "train.pack", LEVELS)


def shown_by_any_viewer(header: str, tiles: bytes, width: int, height: int) -> np.ndarray:
    """The pixels of tiles behind the header that the JSON has in base64."""
    whole = bytearray(base64.b64decode(header))
    struct.pack_into(">HH", whole, whole.index(b"\xff\xc0") + 5, height, -(-width // 32) * 32)
    return pillow(bytes(whole) + tiles)[:, :width]


def test_a_reader_written_from_the_docstring_alone_reads_levels(leveled):
    data = leveled.read_bytes()
    version, json_bytes = struct.unpack_from("<8x2I", data)
    index_offset, num_images = struct.unpack_from("<2Q", data, 32)
    about = json.loads(data[64 : 64 + json_bytes])
    assert version == 2 and about["settings"]["levels"] == [140, 48]
    counts = set()
    for i in range(num_images):
        entry = struct.unpack_from("<Q2I2H3I", data, index_offset + 32 * i)
        offset, size, _, width, height, table_size, table_crc, head_size = entry
        table = data[offset : offset + table_size]
        assert zlib.crc32(table) == table_crc
        at = 2 + int.from_bytes(table[:2], "little")
        (count,) = struct.unpack_from("<H", table, at)
        stored = list(struct.iter_unpack("<2H2I", table[at + 2 : at + 2 + 12 * count]))
        assert stored[-1][:2] == (width, height) == pillow(read(i)).shape[1::-1]
        sides = [max(part[:2]) for part in stored]
        assert sides[:-1] == [side for side in (48, 140) if sides[-1] >= 1.25 * side]
        counts.add(count)
        lengths_at, tiles_at = at + 2 + 12 * count, offset + table_size
        assert head_size == table_size + stored[0][2]
        for number, (width, height, num_bytes, crc) in enumerate(stored):
            is_full = number == count - 1
            num_tiles = -(-height // (16 if is_full else 8)) * -(-width // 32)
            lengths = struct.unpack_from(f"<{num_tiles}H", table, lengths_at)
            tiles = data[tiles_at : tiles_at + num_bytes]
            assert sum(lengths) == num_bytes and zlib.crc32(tiles) == crc
            header = about["jpeg_header" if is_full else "level_header"]
            ours = PackedImages(leveled).open(i).level(count - 1 - number)
            shown = shown_by_any_viewer(header, tiles, width, height)
            # A cut picture's last row of 4:2:0 is made with the chroma of the tile's rows below.
            rows = slice(height - is_full)
            assert np.array_equal(shown[rows], ours.pixels()[rows])
            lengths_at, tiles_at = lengths_at + 2 * num_tiles, tiles_at + num_bytes
        assert tiles_at == offset + size and lengths_at == table_size
    assert counts == {2, 3}


def test_a_level_shows_the_original(leveled):
    """Made from it, anti-aliased, and not from the JPEG of the full picture, of noise here."""
    pack = PackedImages(leveled)
    for i in range(NUM_IMAGES):
        picture = pack.open(i)
        for number, size in enumerate(picture.sizes):
            original = Image.fromarray(pillow(read(i)))
            reference = np.asarray(original.resize(size, Image.Resampling.BICUBIC)).astype(int)
            difference = np.abs(picture.level(number).pixels() - reference).mean()
            assert difference < (4 if number else 9), (i, size, difference)


def test_a_small_crop_reads_the_smallest_level_alone(leveled, monkeypatch):
    pack, reads = PackedImages(leveled), []
    pread = os.pread

    def noted(file: int, num_bytes: int, offset: int) -> bytes:
        reads.append((offset, num_bytes))
        return pread(file, num_bytes, offset)

    monkeypatch.setattr(os, "pread", noted)
    offset, size, head_size = (
        int(pack._index[name][1]) for name in ("offset", "size", "head_size")
    )
    picture = pack.open(1, 32)
    assert picture.level(len(picture.sizes) - 1).pixels().shape[1::-1] == picture.sizes[-1]
    assert reads == [(offset, head_size)]
    assert picture.pixels().shape[1::-1] == picture.size
    (_, (last, num_bytes)) = reads
    assert last + num_bytes == offset + size and last >= offset + head_size
    # A large one reads the table and the full picture, and none of those in between.
    reads.clear()
    assert np.array_equal(pack.open(1, 224).pixels(), picture.pixels())
    assert reads[:2] == [(offset, int(pack._index["table_size"][1])), (last, num_bytes)]


@pytest.mark.parametrize("image_size", [None, 32, 224])
def test_what_is_fetched_ahead_is_what_is_read(tmp_path, monkeypatch, image_size):
    """By images with a level, and by those beside them that are too small for it."""
    pack = PackedImages(make_pack(tmp_path / "train.pack", levels=(170,)))
    assert {len(pack.open(i).sizes) for i in range(NUM_IMAGES)} == {1, 2}
    fetched, read_ = [], []
    pread = os.pread

    def noted(file: int, num_bytes: int, offset: int) -> bytes:
        read_.append((offset, offset + num_bytes))
        return pread(file, num_bytes, offset)

    monkeypatch.setattr(os, "pread", noted)
    monkeypatch.setattr(
        os, "posix_fadvise", lambda _, at, size, advice: fetched.append((at, at + size, size))
    )
    pack.will_need(np.arange(NUM_IMAGES), image_size)
    assert all(size for _, _, size in fetched)  # 0 would mean up to the end of the file
    for i in range(NUM_IMAGES):
        picture = pack.open(i, image_size)
        level = len(picture.sizes) - 1 if image_size == 32 else 0
        picture.will_need(level)
        picture.level(level).pixels()
    for start, end in read_:
        assert any(first <= start and end <= last for first, last, _ in fetched)
    num_read = sum(end - start for start, end in read_)
    whole = sum(size for _, _, size in pack.extents(np.arange(NUM_IMAGES)))
    assert num_read < whole


def test_a_damaged_level_is_named_and_hits_no_other_pixels(leveled, tmp_path):
    before = PackedImages(leveled)
    entry = before._index[2]
    place = int(entry["offset"] + entry["head_size"]) - 40
    path = spoiled(leveled, tmp_path / "other.pack", put(place, b"\xff\xd9\x12\x34"))
    pack = PackedImages(path)
    width, height = pack.open(2).sizes[-1]
    what = f"its level of {width}x{height} pixels: its payload fails its checksum"
    assert [pack.find_fault(i) for i in range(NUM_IMAGES)] == [None, None, what, None, None, None]
    for i in range(NUM_IMAGES):
        for number in range(len(pack.open(i).sizes) - (i == 2)):
            ours, reference = (one.open(i).level(number).pixels() for one in (pack, before))
            assert np.array_equal(ours, reference)


def test_a_reader_written_from_the_docstring_alone_reads_it(pack_path):
    if pack_path.parent.name.startswith(LEVELS):
        return  # version 2, above
    data = pack_path.read_bytes()
    fields = struct.unpack_from("<8s4I4Q2I", data)
    magic, version, json_bytes, json_crc, index_crc = fields[:5]
    records_offset, index_offset, num_images, file_bytes, zero, header_crc = fields[5:]
    assert (magic, version, zero, file_bytes) == (b"RN50PACK", 1, 0, len(data))
    assert header_crc == zlib.crc32(data[:60]) and num_images == NUM_IMAGES
    text = data[64 : 64 + json_bytes]
    about, index = json.loads(text), data[index_offset:]
    assert zlib.crc32(text) == json_crc and zlib.crc32(index) == index_crc
    assert about["split"] == "train" and about["classes"] == list(CLASSES)
    offset, size, label, width, height, table_size, table_crc, payload_crc = struct.unpack_from(
        "<Q2I2H3I", index, 32 * 4
    )
    assert offset >= records_offset and about["classes"][label] == "cat"
    table = data[offset : offset + table_size]
    payload = data[offset + table_size : offset + size]
    assert zlib.crc32(table) == table_crc and zlib.crc32(payload) == payload_crc
    (name_bytes,) = struct.unpack_from("<H", table)
    assert table[2 : 2 + name_bytes] == b"cat/4.jpg"
    ours = PackedImages(pack_path).open(4).pixels()
    if about["store"] == "original":
        assert payload == read(4)
        return
    rows, columns = -(-height // 16), -(-width // 32)
    lengths = struct.unpack_from(f"<{rows * columns}H", table, 2 + name_bytes)
    assert sum(lengths) == len(payload)
    shown = shown_by_any_viewer(about["jpeg_header"], payload, width, height)
    assert np.array_equal(shown, ours)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: data[:0], "does not begin like a pack"),
        (lambda data: data[:40], "header fails its checksum"),
        (lambda data: data[:-1], r"has [\d,]+ bytes, [\d,]+ were written"),
        (lambda data: data + b"\0", r"has [\d,]+ bytes, [\d,]+ were written"),
        (put(0, b"PK\3\4"), "does not begin like a pack"),
        (put(20, b"\xff"), "header fails its checksum"),
        (put(70, b"\xff"), "JSON fails its checksum"),
        (lambda data: data[:-8] + b"\x55" * 8, "index at [0-9,]+ fails its checksum"),
        (put_version, "has format 9, and this program reads 1 and 2: .* update this clone"),
    ],
)
def test_a_damaged_file_is_refused_when_opened(pack_path, tmp_path, change, message):
    place = spoiled(pack_path, tmp_path / "other.pack", change)
    with pytest.raises(ValueError, match=f"{place}.* {message}") as caught:
        PackedImages(place)
    assert "pack again" in str(caught.value) or "format 9" in str(caught.value)


def test_a_damaged_table_names_file_image_and_place(pack_path, tmp_path):
    pack = PackedImages(pack_path)
    offset = int(pack._index["offset"][2])
    place = spoiled(pack_path, tmp_path / "other.pack", put(offset + 4, b"\xaa\xbb"))
    pack = PackedImages(place)
    with pytest.raises(DamagedPackError, match=rf"record of image 2 at {offset:,} fails") as caught:
        pack.open(2)
    assert str(place) in str(caught.value) and "pack again" in str(caught.value)
    assert pack.name(2) == f"{place}:image 2" and "checksum" in pack.find_fault(2)
    assert pack.find_fault(1) is None and pack.find_fault(3) is None


def test_every_byte_of_a_record_is_under_a_checksum(pack_path, tmp_path):
    """Of its table, its payload and each of its levels; without decoding, and for that image."""
    pack = PackedImages(pack_path)
    assert not any(pack.find_damage(i) for i in range(NUM_IMAGES))
    offset, size = int(pack.offsets[3]), int(pack._index["size"][3])
    table_size = int(pack._index["table_size"][3])
    rng = np.random.default_rng(0)
    tables = [0, 1, 5, table_size - 1]
    payloads = [table_size, size - 1, *rng.integers(table_size, size, 60).tolist()]
    for at in (*tables, *payloads):
        byte = pack_path.read_bytes()[offset + at]
        path = spoiled(pack_path, tmp_path / "other.pack", put(offset + at, bytes([byte ^ 1])))
        damage = [PackedImages(path).find_damage(i) for i in range(NUM_IMAGES)]
        assert [i for i in range(NUM_IMAGES) if damage[i]] == [3]
        part = "its record" if at in tables else "its payload"
        assert f"{part} fails its checksum" in damage[3]


def test_ten_thousand_damaged_files_never_give_another_images_pixels(pack_path):
    """Random bytes anywhere; a crash of the interpreter would end this child process."""
    num_files = 2000 if pack_path.parent.name.startswith(LEVELS) else 4000
    counts = printed_by("fuzz_pack", pack_path, num_files)
    assert sum(counts.values()) == num_files and min(counts.values()) > 100, counts


def printed_by(program: str, *words: object) -> dict:
    """The JSON that a program prints."""
    result = run_program(program, *words)
    assert result.code == 0, result.err[-3000:]
    return json.loads(result.out)


def test_a_state_whose_records_are_gone_is_not_believed(tmp_path):
    """A kill between the rename and the removal of the other parts leaves them so."""
    path = make_pack(tmp_path / "train.pack")
    whole, pack = path.read_bytes(), PackedImages(path)
    pictures = [Picture(f"{CLASSES[i // 2]}/{i}.jpg", i // 2, i) for i in range(NUM_IMAGES)]
    header, _, _ = encode_tiles(np.zeros((16, 32, 3), np.uint8), 90)
    about = {
        "split": "train",
        "classes": list(CLASSES),
        "store": "tiles",
        "settings": Encoding().settings(),
        "jpeg_header": base64.b64encode(header).decode(),
    }
    job = SplitJob("train", pictures, CLASSES, read, Encoding())
    end = int(pack._index["offset"][-1] + pack._index["size"][-1])
    position = [NUM_IMAGES, NUM_IMAGES, end]
    state = {
        "job": encode.fingerprint(job, about),
        "position": position,
        "notes": [],
        "dropped": [],
    }
    for kept in ((), (".index",), (".index", ".partial")):
        (tmp_path / "train.pack.state").write_text(json.dumps(state))
        if ".index" in kept:
            (tmp_path / "train.pack.index").write_bytes(pack._index.tobytes())
        if ".partial" in kept:  # with what a kill left behind the last commit
            (tmp_path / "train.pack.partial").write_bytes(bytes(64) + whole[64:end] + b"half")
        assert make_pack(path).read_bytes() == whole
        assert [file.name for file in tmp_path.iterdir()] == ["train.pack"]


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2000)), min_size=1, max_size=8))
def test_damaged_jpegs_of_a_folder_decode_or_raise(changes):
    data = bytearray(encoded(1, "4:2:0"))
    for value, at in changes:
        data[at % len(data)] = value
    try:
        whole = jpeg.WholePicture(bytes(data))
        pixels = whole.crop(0, 0, min(9, whole.size[0]), min(9, whole.size[1]))
    except Exception:  # Pillow raises a dozen types
        return
    assert pixels.shape[2] == 3


def test_an_index_as_large_as_imagenets_opens_without_the_images(tmp_path):
    """1,281,167 entries of one record; four forked workers use it and share its memory."""
    num_images = 1_281_167
    small = PackedImages(make_pack(tmp_path / "train.pack", LEVELS))
    data = Path(small.root).read_bytes()
    about = json.loads(data[64 : 64 + int.from_bytes(data[12:16], "little")])
    big = tmp_path / "big.pack"
    with open(big, "w+b") as file:
        [(_, offset, size)] = small.extents(np.array([0]))
        assert offset == packed_images.records_offset(about)
        file.seek(offset)
        file.write(data[offset : offset + size])
        packed_images.seal(file, about, np.repeat(small._index[:1], num_images))
    told = printed_by("use_pack_with_workers", big)
    assert told["num_images"] == num_images
    assert told["open_s"] < 4, told  # a second, and slack for a busy machine
    assert told["megabytes"] < 300, told
