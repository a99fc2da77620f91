"""Pixels equal torchvision's; crop rectangles equal a plain loop's."""

import io
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from resnet50.data import crops, transforms
from resnet50.data.batch import normalize


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=60)
@given(st.integers(20, 120), st.integers(20, 120), st.integers(16, 64), st.integers(0, 20))
def test_evaluation_crop_is_torchvisions(width, height, size, margin):
    image = noise(width, height)
    reference = v2.Compose([v2.Resize(size + margin), v2.CenterCrop(size), v2.PILToTensor()])(image)
    ours = transforms.eval_crop(image, size + margin, size)
    assert np.array_equal(ours, reference.permute(1, 2, 0).numpy())


def plain_crop(draws: np.ndarray, width: int, height: int, min_scale: float) -> list[int]:
    """RandomResizedCrop.get_params of torchvision 0.29 with the random numbers given."""
    for i in range(10):
        area = width * height * (min_scale + (1 - min_scale) * draws[i])
        log_ratio = math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * draws[10 + i]
        ratio = math.exp(log_ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws[20] * (width - w + 1)), int(draws[21] * (height - h + 1))
            return [left, top, left + w, top + h]
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return [left, top, left + w, top + h]


@settings(max_examples=300)
@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 1), st.integers(0, 2**32))
def test_crop_boxes_are_torchvisions_rule_for_each_picture(width, height, min_scale, seed):
    draws = np.random.default_rng(seed).random((3, crops.CROP_DRAWS))
    sizes = np.array([[width, height], [height, width], [width, width]])
    boxes = crops.crop_boxes(draws, sizes, min_scale)
    for row, (w, h), box in zip(draws, sizes, boxes, strict=True):
        assert box.tolist() == plain_crop(row, int(w), int(h), min_scale)
        assert 0 <= box[0] < box[2] <= w and 0 <= box[1] < box[3] <= h


def test_normalization_and_flip_are_torchvisions():
    pixels = torch.from_numpy(np.stack([np.asarray(noise(8, 6, seed)) for seed in range(4)]))
    flips = torch.tensor([True, False, True, False])
    ours = normalize(pixels, flips)
    assert ours.is_contiguous(memory_format=torch.channels_last) and ours.dtype == torch.float32
    for image, flip, result in zip(pixels, flips, ours, strict=True):
        reference = image.permute(2, 0, 1).float() / 255
        reference = v2.functional.normalize(
            reference.flip(2) if flip else reference,
            list(transforms.IMAGENET_MEAN),
            list(transforms.IMAGENET_STD),
        )
        torch.testing.assert_close(result, reference, atol=1e-6, rtol=1e-6)


def saved(image: Image.Image, format: str) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return Image.open(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize(
    "image",
    [
        saved(noise(20, 20).convert("CMYK"), "JPEG"),
        saved(noise(20, 20).convert("L"), "JPEG"),
        saved(noise(20, 20).convert("P"), "PNG"),
        saved(noise(20, 20).convert("LA"), "PNG"),
        saved(noise(20, 20).convert("RGBA"), "PNG"),
        saved(noise(20, 20).convert("1"), "PNG"),
    ],
    ids=["CMYK", "gray", "palette", "gray with alpha", "RGBA", "bilevel"],
)
def test_any_mode_becomes_rgb(image):
    rgb = transforms.to_rgb(image)
    assert rgb.mode == "RGB" and rgb.size == (20, 20)
    assert np.asarray(rgb).std() > 10  # still the picture


def deep(low: float, high: float, dtype: str) -> np.ndarray:
    return np.linspace(low, high, 64).reshape(8, 8).astype(dtype)


# What is saved, in which format, and how its smallest and largest values are read.
GRAY = {
    "8 bits in 32": (deep(0, 255, "i4"), "PNG", 0, 255),
    "8 bits in 16": (deep(0, 255, "u2"), "TIFF", 0, 255),
    "few values": (deep(3, 200, "u2"), "PNG", 3, 200),
    "10 bits": (deep(0, 1023, "u2"), "PNG", 0, 255),
    "12 bits": (deep(16, 4095, "u2"), "TIFF", 1, 255),
    "14 bits": (deep(0, 16383, "i4"), "TIFF", 0, 255),
    "16 bits": (deep(0, 65535, "u2"), "PNG", 0, 255),
    "20 bits": (deep(0, 2**20 - 1, "i4"), "TIFF", 0, 255),
    "31 bits": (deep(0, 2**31 - 1, "i4"), "TIFF", 0, 127),
    "signed": (deep(-1024, 3071, "i4"), "TIFF", 112, 175),
    "floats to 1": (deep(0, 1, "f4"), "TIFF", 0, 255),
    "floats from -1": (deep(-1, 1, "f4"), "TIFF", 0, 255),
    "floats to 255": (deep(0, 255, "f4"), "TIFF", 0, 255),
    "floats to 1000": (deep(0, 1000, "f4"), "TIFF", 0, 250),
    "no numbers": (np.full((8, 8), np.nan, "f4"), "TIFF", 0, 0),
}


@pytest.mark.parametrize("kind", GRAY)
def test_gray_of_more_than_8_bits_keeps_its_shades(kind):
    values, form, low, high = GRAY[kind]
    gray = np.asarray(transforms.to_rgb(saved(Image.fromarray(values), form)))
    assert (gray[..., 0].min(), gray[..., 0].max()) == (low, high)
    assert (np.diff(gray[..., 1].ravel().astype(int)) >= 0).all()
    assert str(transforms.gray_range(values)).startswith("gray of ")


def test_what_is_not_finite_in_gray_is_the_darkest_or_the_brightest():
    values = np.array([[np.nan, -np.inf, 0.0, 300.0, np.inf]], dtype=np.float32)
    with warnings.catch_warnings(action="error"):
        gray = transforms.deep_gray(values)[0]
    assert list(gray) == [0, 0, 0, 75, 75]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9))
def test_no_gray_is_clipped_and_the_order_of_shades_stays(values):
    values = np.array([values], dtype=np.int64)
    low, high, bits = transforms.gray_range(values)
    gray, order = transforms.deep_gray(values)[0].astype(int), values[0].argsort()
    assert (np.diff(gray[order]) >= 0).all() and bits % 2 == 0 and bits >= 8
    assert low < 0 or bits == 8 or gray.max() >= 64 - 1
    assert low < 0 or high > 255 or np.array_equal(gray, values[0])


@pytest.mark.parametrize("width, height", [(1, 900), (2, 700), (700, 3), (5, 1201)])
def test_a_strip_is_cropped_without_the_rest_and_all_but_equal(width, height, monkeypatch):
    image = noise(width, height)
    part = transforms.eval_crop(image, 48, 40).astype(int)
    monkeypatch.setattr(transforms, "MAX_SIDES_RATIO", 10**9)
    assert np.abs(part - transforms.eval_crop(image, 48, 40)).max() <= 1


def test_a_strip_of_20000_pixels_takes_no_gigabytes():
    assert transforms.eval_crop(noise(1, 20_000), 256, 224).std() > 20  # 4 GB if all were resized


def test_sixteen_bit_gray_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    image = saved(Image.fromarray(ramp), "PNG")
    assert image.mode.startswith("I")
    for is_legacy in (False, True):
        gray = np.asarray(transforms.to_rgb(image, is_legacy))[..., 0]
        assert np.array_equal(gray, (ramp >> 8).astype(np.uint8))
    small = Image.fromarray(np.full((8, 8), 200, np.uint16))
    assert not np.asarray(transforms.to_rgb(small, is_legacy=True)).any()  # as in older runs
