"""The packed file: as its docstring says, checked when opened, never another image's pixels."""

import base64
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import run_program
from support.jpegs import encoded, pillow
from support.packs import put, put_version, spoiled
from support.pictures import CLASSES

from resnet50.data import jpeg
from resnet50.data import pack as packed_images
from resnet50.data.pack import DamagedPackError, PackedImages
from resnet50.packing import encode
from resnet50.packing.data_set import Picture
from resnet50.packing.encode import Encoding, SplitJob

NUM_IMAGES = 6


def make_pack(path: Path, store: str = "tiles", num_images: int = NUM_IMAGES, **sizes: int) -> Path:
    """Images 0, 1, 2.. of test_jpeg, two a class."""
    pictures = [Picture(f"{CLASSES[i // 2]}/{i}.jpg", i // 2, i) for i in range(num_images)]
    encoding = Encoding(store=store, **sizes)
    job = SplitJob("train", pictures, CLASSES[: num_images // 2], read, encoding)
    encode.pack_split(job, path, 1)
    return path


def read(seed: int) -> bytes:
    return encoded(seed, "4:2:0")


@pytest.fixture(scope="module", params=["tiles", "original"])
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


def test_a_reader_written_from_the_docstring_alone_reads_it(pack_path):
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
    header = bytearray(base64.b64decode(about["jpeg_header"]))
    frame = header.index(b"\xff\xc0")
    struct.pack_into(">HH", header, frame + 5, height, columns * 32)
    assert np.array_equal(pillow(bytes(header) + payload)[:, :width], ours)


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
        (put_version, "has format 9, this program reads 1"),
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


def test_ten_thousand_damaged_files_never_give_another_images_pixels(pack_path):
    """Random bytes anywhere; a crash of the interpreter would end this child process."""
    counts = printed_by("fuzz_pack", pack_path, 5000)
    assert sum(counts.values()) == 5000 and min(counts.values()) > 100, counts


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
    header, _, _ = jpeg.encode_tiles(np.zeros((16, 32, 3), np.uint8), 90)
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
    small = PackedImages(make_pack(tmp_path / "train.pack"))
    data = Path(small.root).read_bytes()
    about = json.loads(data[64 : 64 + int.from_bytes(data[12:16], "little")])
    big = tmp_path / "big.pack"
    with open(big, "w+b") as file:
        start = packed_images.records_offset(about)
        file.seek(start)
        table, payload, size = small._read(0)
        record = packed_images.Record(0, *size, bytes(table), bytes(payload))
        file.write(record.table + record.payload)
        packed_images.seal(file, about, np.repeat(record.index_entry(start)[None], num_images))
    told = printed_by("use_pack_with_workers", big)
    assert told["num_images"] == num_images
    assert told["open_s"] < 4, told  # a second, and slack for a busy machine
    assert told["megabytes"] < 300, told
