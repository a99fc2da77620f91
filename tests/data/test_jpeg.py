"""Decoding only what a crop needs gives the pixels that decoding everything gives."""

import functools
import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.jpegs import KINDS, encoded, picture, pillow

from resnet50.data import jpeg
from resnet50.data.tiles import TiledPicture, TileHeader, cut, encode_tiles


@st.composite
def boxes(draw, width: int, height: int, multiple: int = 1) -> tuple[int, int, int, int]:
    left = draw(st.integers(0, width // multiple - 1)) * multiple
    top = draw(st.integers(0, height // multiple - 1)) * multiple
    right = draw(st.integers(left // multiple + 1, width // multiple)) * multiple
    bottom = draw(st.integers(top // multiple + 1, height // multiple)) * multiple
    return left, top, right, bottom


@settings(max_examples=150)
@given(st.sampled_from(sorted(KINDS)), st.integers(0, 20), st.data())
def test_a_whole_pictures_crop_is_pillows_bit_for_bit(kind, seed, choice):
    data = encoded(seed, kind)
    whole, reference = jpeg.WholePicture(data), pillow(data)
    assert whole.size == (reference.shape[1], reference.shape[0])
    left, top, right, bottom = choice.draw(boxes(*whole.size))
    assert np.array_equal(whole.crop(left, top, right, bottom), reference[top:bottom, left:right])


@pytest.mark.parametrize(
    "mode, form", [("RGB", "PNG"), ("CMYK", "JPEG"), ("I;16", "PNG"), ("P", "GIF")]
)
def test_other_pictures_are_what_pillow_makes_of_them(mode, form):
    image = picture(3).convert(mode) if mode != "I;16" else picture(3).convert("I").convert(mode)
    file = io.BytesIO()
    image.save(file, form)
    whole = jpeg.WholePicture(file.getvalue())
    assert np.array_equal(whole.crop(5, 6, 70, 80, 2), pillow(file.getvalue())[6:80, 5:70])


@settings(max_examples=60)
@given(st.sampled_from(sorted(KINDS)), st.floats(0, 1), st.integers(0, 9))
def test_a_file_that_was_cut_short_is_taken_only_with_all_its_pixels(kind, share, missing):
    whole = encoded(1, kind)
    data = whole[: min(int(share * len(whole)), len(whole) - missing)]
    if len(whole) - len(data) <= 2:  # its end marker, or half of it
        assert np.array_equal(jpeg.WholePicture(data).pixels(), pillow(whole))
        return
    for way in ("no", "yes", "legacy"):
        with pytest.raises(OSError):
            jpeg.WholePicture(data, way).crop(0, 0, 9, 9)


def test_a_run_of_before_still_leaves_out_a_jpeg_without_its_end():
    with pytest.raises(OSError):
        jpeg.WholePicture(encoded(1, "4:2:0")[:-2], "legacy").pixels()


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_progressive_file_that_ends_between_two_scans_is_cut(mode):
    """libjpeg gives no warning: the last scans only refine the picture."""
    file = io.BytesIO()
    picture(1).convert(mode).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    scans = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    assert len(scans) > 3
    for end in scans[1:]:
        with pytest.raises(OSError):
            jpeg.WholePicture(data[:end]).pixels()
    assert np.array_equal(jpeg.WholePicture(data[:-2]).pixels(), pillow(data))


@pytest.mark.parametrize("place", ["before the pixels", "behind them"])
def test_a_png_with_large_texts_is_taken(place):
    image, file, info = picture(2), io.BytesIO(), PngInfo()
    info.add_text("parameters", "x" * 3_000_000, zip=True)
    image.save(file, "PNG", pnginfo=info)
    data = file.getvalue()
    if place == "behind them":
        start = data.index(b"zTXt") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4])
        data = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert np.array_equal(jpeg.WholePicture(data).pixels(), np.asarray(image))
    with pytest.raises(ValueError, match="MAX_TEXT"):
        jpeg.WholePicture(data, "legacy").pixels()


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_picture_of_96_megapixels_is_read_without_a_word(form, capfd, recwarn):
    file = io.BytesIO()
    Image.new("L", (9_600, 10_000)).save(file, form)
    whole = jpeg.WholePicture(file.getvalue())
    assert whole.size == (9_600, 10_000)
    assert form == "PNG" or whole.crop(0, 0, 64, 64).shape == (64, 64, 3)
    assert not recwarn.list and not "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xc0\0\x11", b"no"]
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(OSError):
        jpeg.WholePicture(data)


@functools.cache
def tiled(seed: int, quality: int = 90) -> TiledPicture:
    pixels = np.asarray(picture(seed))
    header, tiles, lengths = encode_tiles(pixels, quality)
    size = pixels.shape[1], pixels.shape[0]
    return TiledPicture(TileHeader(header), memoryview(tiles), lengths, size)


def test_all_tiles_behind_their_header_are_an_ordinary_jpeg():
    pixels = np.asarray(picture(4))
    header, tiles, lengths = encode_tiles(pixels, 90)
    assert lengths.sum() == len(tiles) and lengths.dtype == np.uint16
    height, width = pixels.shape[:2]
    data = TileHeader(header).sized(lengths.shape[1] * 32, height) + tiles
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG" and image.size == (-(-width // 32) * 32, height)
    assert np.array_equal(np.asarray(image)[:, :width], tiled(4).pixels())
    file = io.BytesIO()
    padded = np.pad(pixels, ((0, 0), (0, image.width - width), (0, 0)), mode="edge")
    Image.fromarray(padded).save(file, "JPEG", quality=90, subsampling="4:2:0")
    assert np.array_equal(pillow(file.getvalue()), np.asarray(image))  # restarts change no pixel


@settings(max_examples=200)
@given(st.integers(0, 20), st.data())
def test_a_crop_of_tiles_is_the_whole_pictures_but_for_its_edges_chroma(seed, choice):
    picture = tiled(seed)
    left, top, right, bottom = choice.draw(boxes(*picture.size))
    crop = picture.crop(left, top, right, bottom).astype(int)
    whole = picture.pixels()[top:bottom, left:right]
    assert crop.shape == whole.shape
    # Only the pixels beside the outermost tiles' edges are made from other neighbors.
    inner = np.ones(crop.shape[:2], bool)
    for axis, first, last in ((0, top % 16, bottom % 16), (1, left % 32, right % 32)):
        edge = [0] * (first == 0) + [crop.shape[axis] - 1] * (last == 0)
        np.swapaxes(inner, 0, axis)[edge] = False
    assert np.array_equal(crop[inner], whole[inner])
    assert np.abs(crop - whole).mean() < 6


@settings(max_examples=60)
@given(st.integers(0, 10), st.sampled_from([2, 4]), st.booleans(), st.data())
def test_a_reduced_crop_is_the_crop_averaged(seed, shrink, is_tiled, choice):
    source = tiled(seed) if is_tiled else jpeg.WholePicture(encoded(seed, "4:2:0"))
    left, top, right, bottom = choice.draw(boxes(*source.size, multiple=shrink))
    small = source.crop(left, top, right, bottom, shrink).astype(float)
    full = source.crop(left, top, right, bottom).astype(float)
    rows, columns = (bottom - top) // shrink, (right - left) // shrink
    assert small.shape == (rows, columns, 3)
    averaged = full.reshape(rows, shrink, columns, shrink, 3).mean(axis=(1, 3))
    assert abs(small.mean() - averaged.mean()) < 4
    assert np.abs(small - averaged).mean() < 14  # of noise with a deviation of 15


def test_the_spliced_bytes_are_a_valid_jpeg_for_pillow_too():
    boxes = np.array([[32, 16, 96, 64], [0, 0, 32, 32]])
    first, other = cut([tiled(2), tiled(3)], boxes, np.ones(2, np.int64))
    assert np.array_equal(pillow(bytes(first.data)), tiled(2).crop(32, 16, 96, 64))
    assert np.array_equal(pillow(bytes(other.data)), tiled(3).crop(0, 0, 32, 32))


def longer(lengths: np.ndarray) -> np.ndarray:
    changed = lengths.copy()
    changed[0, 0] += 1
    return changed


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tiles, lengths, size: (tiles[:-1], lengths, size),
        lambda tiles, lengths, size: (tiles[:0], lengths, size),
        lambda tiles, lengths, size: (tiles, longer(lengths), size),
        lambda tiles, lengths, size: (tiles, np.full_like(lengths, 65_535), size),
        lambda tiles, lengths, size: (tiles, np.zeros_like(lengths), size),
        lambda tiles, lengths, size: (tiles, lengths[:-1], size),
        lambda tiles, lengths, size: (tiles, lengths, (65_535, 65_535)),
        lambda tiles, lengths, size: (bytes(4096), np.full(2048, 2, np.uint16), (65_535, 1)),
        lambda tiles, lengths, size: (tiles, lengths, (0, size[1])),
        lambda tiles, lengths, size: (tiles, lengths, (size[0], 0)),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_tiles_that_are_not_as_their_table_says_hit_no_other_picture(spoil, place):
    pictures = [tiled(5), tiled(6)]
    spoiled = spoil(pictures[0].tiles, pictures[0].lengths, pictures[0].size)
    bad = TiledPicture(pictures[0].header, *spoiled)
    pictures.insert(place, bad)
    cuts = cut(pictures, np.array([[0, 0, *picture.size] for picture in pictures]), np.ones(3, int))
    with pytest.raises(ValueError):
        cuts.pop(place).pixels()
    for one, seed in zip(cuts, (5, 6), strict=True):
        assert np.array_equal(one.pixels(), tiled(seed).pixels())
