#!/usr/bin/env bash
# Pillow 12.3.0: getexif() of a PNG that has no EXIF decodes the whole picture.
#
# Expected: reading the metadata costs little, as for a JPEG, whose pixels stay undecoded.
# Behavior: a PNG may have its EXIF after the pixels, so without one before them `getexif()` calls
# `load()`. A scan of a folder for orientations thus pays for decoding every such PNG. Whether a
# picture is decoded shows in `tile`, the list of what is still to be read, which load() empties.
# Seen: JPEG without EXIF: parts left to decode 1 -> 1
#       PNG with EXIF: parts left to decode 1 -> 1
#       PNG without EXIF: parts left to decode 1 -> 0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet Pillow==12.3.0

cat >"$folder/read.py" <<'PY'
import io

from PIL import Image

exif = Image.Exif()
exif[0x0112] = 6
for name, options in (("JPEG", {}), ("PNG", {"exif": exif}), ("PNG", {})):
    file = io.BytesIO()
    Image.new("RGB", (400, 200)).save(file, name, **options)
    image = Image.open(file)
    before = len(image.tile)
    image.getexif()
    has = "with" if options else "without"
    print(f"{name} {has} EXIF: parts left to decode {before} -> {len(image.tile)}")
PY
seen=$("$folder/venv/bin/python" "$folder/read.py")
echo "$seen"
expected="JPEG without EXIF: parts left to decode 1 -> 1
PNG with EXIF: parts left to decode 1 -> 1
PNG without EXIF: parts left to decode 1 -> 0"
[[ $seen == "$expected" ]] || { echo "the behavior has changed" && exit 1; }
