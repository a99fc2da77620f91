#!/usr/bin/env bash
# Pillow 12.3.0: load() turns a TIFF by its orientation tag; a JPEG or PNG with that tag it leaves.
#
# Expected: one rule for all formats: the pixels come as stored, and `ImageOps.exif_transpose` turns
# them when the caller asks for it.
# Behavior: decoding a TIFF calls `exif_transpose` and drops the tag, so that `size` changes over
# and the tag is gone. A reader that looks at the tag before decoding and turns the picture itself
# turns a TIFF twice.
# Seen: JPEG: orientation 6 -> 6, size after load() (40, 20)
#       PNG: orientation 6 -> 6, size after load() (40, 20)
#       TIFF: orientation 6 -> None, size after load() (20, 40)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet Pillow==12.3.0

cat >"$folder/turn.py" <<'PY'
import io

from PIL import Image

ORIENTATION = 0x0112
exif = Image.Exif()
exif[ORIENTATION] = 6
for name in ("JPEG", "PNG", "TIFF"):
    file = io.BytesIO()
    Image.new("RGB", (40, 20)).save(file, name, exif=exif)
    before = Image.open(io.BytesIO(file.getvalue())).getexif().get(ORIENTATION)
    image = Image.open(io.BytesIO(file.getvalue()))
    image.load()
    after = image.getexif().get(ORIENTATION)
    print(f"{name}: orientation {before} -> {after}, size after load() {image.size}")
PY
seen=$("$folder/venv/bin/python" "$folder/turn.py")
echo "$seen"
expected="JPEG: orientation 6 -> 6, size after load() (40, 20)
PNG: orientation 6 -> 6, size after load() (40, 20)
TIFF: orientation 6 -> None, size after load() (20, 40)"
[[ $seen == "$expected" ]] || { echo "the behavior has changed" && exit 1; }
