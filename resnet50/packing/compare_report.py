"""What `prepare_data.py --compare` prints and draws."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from resnet50.data.by_pillow import PNG_SIGNATURE
from resnet50.data.pack import PackedImages
from resnet50.packing import compare
from resnet50.packing.compare import Compared, Crop
from resnet50.packing.data_set import Source
from resnet50.system import figures, outputs

PICTURE = "compare.png"
SHOWN_CROPS = 10
PERCENTILES = (0, 10, 50)


def run(
    data_dir: Path,
    packs: Mapping[str, PackedImages],
    source: Source,
    read: Callable[[object], bytes],
    left_out: Mapping[str, set[str]],
) -> int:
    """Compare packs with their source; 0 if all is well, 2 if not.

    read: a picture's member -> its bytes; left_out: names of the pictures of each split that
    packing left out, and said so. Raises ValueError if the picture would replace another file.
    """
    path = data_dir / PICTURE
    if not outputs.may_replace(path, PNG_SIGNATURE):
        what = f"--compare {data_dir} would draw {PICTURE} there, which is another file"
        raise ValueError(f"{what}: move it away")
    compared, findings = {}, []
    for split, images in packs.items():
        pictures = [p for p in source.splits[split] if p.name not in left_out[split]]
        wrong_labels = compare.label_findings(images, pictures, source.classes)
        result = compare.compare_pixels(images, pictures, source.classes, read)
        compared[split] = result
        findings += [f"{split}: {text}" for text in (*wrong_labels, *result.findings)]
        num_left_out = len(source.splits[split]) - len(pictures)
        print(
            f"{images.root}: {len(images):,} images in {len(images.classes):,} classes"
            + (f", {num_left_out:,} left out when it was packed" if num_left_out else "")
        )
        for remark in result.remarks:
            print(f"  {remark}")
    print_table(compared)
    if crops := worst(compared["train"]):
        problem = outputs.write_or_keep("compare", path, lambda place: draw(crops, place))
        print(problem or f"{path}: the training crops that differ most, beside Pillow's")
    for text in findings:
        print(f"wrong: {text}")
    if not findings:
        print("all labels are right, and the pixels of all crops that were compared")
    return 2 if findings else 0


def largest_first(group: tuple[str, int]) -> tuple[float, int]:
    """The key to sort stored sizes, such as "level 248", and sides of crops by."""
    stored, side = group
    number = stored.rpartition(" ")[2]
    return -int(number) if number.isdecimal() else -math.inf, -side


def print_table(compared: Mapping[str, Compared]) -> None:
    """PSNR and SSIM of the crops of every split, stored size and side."""
    print("                               PSNR in dB                   SSIM")
    print("split  stored      px  crops  least   10%  median  Pillow  least    10%  median")
    for split, result in compared.items():
        groups = defaultdict(list)
        for crop in result.crops:
            groups[crop.stored, crop.side].append(crop)
        for stored, side in sorted(groups, key=largest_first):
            crops = groups[stored, side]
            psnr = np.percentile([crop.psnr for crop in crops], PERCENTILES)
            ssim = np.percentile([crop.ssim for crop in crops], PERCENTILES)
            by_pillow = np.median([crop.by_pillow for crop in crops])
            print(
                f"{split:5}  {stored:9}  {side:3}  {len(crops):5}  {psnr[0]:5.1f} {psnr[1]:5.1f}  "
                f"{psnr[2]:6.1f}  {by_pillow:6.1f}  {ssim[0]:5.3f}  {ssim[1]:5.3f}  {ssim[2]:6.3f}"
            )
    print(
        "Pillow: the median PSNR if Pillow alone shrinks and stores the originals, at the same "
        "size and quality; 68.1 dB is the most, for equal pixels"
    )


def worst(result: Compared) -> list[Crop]:
    """The crops that differ most from their originals, one of an image."""
    by_name: dict[str, Crop] = {}
    for crop in sorted(result.crops, key=lambda crop: crop.psnr):
        by_name.setdefault(crop.name, crop)
    return list(by_name.values())[:SHOWN_CROPS]


def draw(crops: list[Crop], path: Path) -> None:
    """Crops, with their classes, above those of the originals."""
    figure = figures.Figure(figsize=(1.6 * SHOWN_CROPS, 3.9), dpi=100, layout="constrained")
    rows = figure.subplots(2, SHOWN_CROPS, squeeze=False)
    for axis in rows.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
    for (above, below), crop in zip(rows.T, crops, strict=False):
        above.imshow(crop.pixels)
        below.imshow(crop.original)
        folder = crop.name.partition("/")[0]
        which = f"{crop.stored}, {crop.side} px, {crop.psnr:.1f} dB"
        above.set_title(f"{figures.plain(folder)}\n{which}", fontsize=7)
    rows[0, 0].set_ylabel("the pack's")
    rows[1, 0].set_ylabel("the original's")
    figures.save(figure, path)
