"""Notes on pictures that are not plain JPEGs."""

import io

import numpy as np
import pytest
from PIL import Image
from support.jpegs import encoded

from resnet50.packing import encode
from resnet50.packing.data_set import Picture
from resnet50.packing.encode import Encoding


def tiff(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    return file.getvalue()


CASES = {
    "a plain JPEG": ("a.jpg", encoded(1, "4:2:0"), ""),
    "without its end": ("a.jpg", encoded(1, "4:2:0")[:-2], "a JPEG without its end marker: made"),
    "a liar": ("a.jpg", tiff(np.ones((8, 8), np.uint8)), "a TIFF, not a JPEG: made"),
    "12 bits": (
        "a.tif",
        tiff(np.array([[0, 4000]], np.uint16)),
        "gray of 0 to 4000: read as 12-bit",
    ),
    "floats": ("a.tif", tiff(np.array([[0, 0.5]], np.float32)), "gray of 0 to 0.5: read as values"),
    "gray": ("a.tif", tiff(np.ones((8, 8), np.uint8)), ""),
}


@pytest.mark.parametrize("case", CASES)
def test_an_unusual_picture_is_packed_and_named(case):
    name, data, text = CASES[case]
    record, note = encode.encode(Picture(name, 0, None), data, Encoding())
    assert record.width and (note.text.startswith(text) if text else note is None)
