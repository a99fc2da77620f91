"""Make a corpus of JPEGs with ImageNet's sizes from photographs in Debian's packages.

    python benchmarks/photo_corpus.py --out /tmp/photo
    python benchmarks/photo_corpus.py --out /tmp/photo --num_images 500 --cache /tmp/debs

Where ImageNet is not at hand, loaders are measured on this: OUT/train/photo_K/NNNN.jpg, 10 folders,
crops of the photographs among the wallpapers of MATE, Plasma and Lomiri. They come by `apt-get
download` (Debian or Ubuntu, no root, 170 MB; 0.9 GB in the temporary folder while it works). The
sizes follow ImageNet's: 470x400 px on average, most with a long side of 500. JPEG 4:2:0, quality 92
to 97, 74 kB on average, which is lighter to decode than ImageNet's own 110 kB.

The same packages, --seed and Pillow give the same bytes, whatever --num_workers is.
"""

import argparse
import collections
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

NUM_CLASSES = 10
# Picked by eye out of all wallpapers in Debian 12: the rest is drawn, rendered or a gradient.
PHOTOS = {
    "lomiri-wallpapers-16.04": (
        "Bridge_by_Sander_Klootwijk.jpg",
        "Dragonfly_by_Bolly.jpg",
        "Picture_0B_by_freespace.jpg",
        "Picture_1A_by_freespace.jpg",
        "Wine_by_Jakkub_Mede.jpg",
        "aitzgorri_by_Aitzol_Berasategi.jpg",
        "friends_by_Aitzol_Berasategi.jpg",
        "greentock_by_Peter_Nerlich.jpg",
        "life_by_Aitzol_Berasategi.jpg",
        "picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "seeding_by_Clements_Engelhardt.jpg",
        "sunset_by_Aitzol_Berasategi.jpg",
    ),
    "lomiri-wallpapers-20.04": ("Kleiber_by_Lukas_Baubkus.jpg",),
    "mate-backgrounds": (
        "Aqua.jpg",
        "Blinds.jpg",
        "Dune.jpg",
        "FreshFlower.jpg",
        "Garden.jpg",
        "GreenMeadow.jpg",
        "LadyBird.jpg",
        "RainDrops.jpg",
        "TwoWings.jpg",
        "Wood.jpg",
        "YellowFlower.jpg",
    ),
    "plasma-workspace-wallpapers": (
        "BytheWater/contents/images/2560x1600.jpg",
        "ColdRipple/contents/images/2560x1600.jpg",
        "ColorfulCups/contents/images/2560x1600.jpg",
        "EveningGlow/contents/images/2560x1600.jpg",
        "FallenLeaf/contents/images/2560x1600.jpg",
        "Gray/contents/images/2560x1600.jpg",
        "Kite/contents/images/2560x1600.jpg",
        "OneStandsOut/contents/images/2560x1600.jpg",
        "Path/contents/images/2560x1600.jpg",
    ),
}
MAX_SOURCE_PX = 2560  # long side that a photograph is reduced to before it is cut
MAX_CROP_PX = 1000  # no photograph has a shorter short side
LONG_PX = 500  # ImageNet's commonest long side, Flickr's "medium" size
SHORT_PX = (333, 375, 375, 375, 400)  # of a long side of 500: 3:2, 4:3, 5:4
MIN_SHRINK = 2.0  # wallpapers are blurrier per pixel than pictures of 500 px
QUALITIES = (92, 97)
MIN_BYTES_PER_PX = 0.22  # less is sky or blur; ImageNet's mean is 0.54, this corpus's 0.38
MAX_DRAWS = 20


def download(packages: Iterable[str], folder: Path) -> None:
    """Fetch packages as FOLDER/NAME_*.deb without root and without a trace in apt's own folders.

    Raises OSError or CalledProcessError.
    """
    with tempfile.TemporaryDirectory(prefix="photo-corpus-apt-") as name:
        state = Path(name)
        for part in ("lists/partial", "cache/archives/partial", "debs"):
            (state / part).mkdir(parents=True)
        user = os.environ.get("USER", "") if os.geteuid() else "root"
        options = [
            f"Dir::State::lists={state}/lists",
            f"Dir::Cache={state}/cache",
            f"APT::Sandbox::User={user}",
            "Debug::NoLocking=1",
            "Acquire::Retries=3",
            "Acquire::http::Timeout=30",
        ]
        apt = ["apt-get", "--quiet=2", *(word for option in options for word in ("-o", option))]
        for command in (["update"], ["download", *packages]):
            subprocess.run(
                [*apt, *command], check=True, capture_output=True, text=True, cwd=state / "debs"
            )
        for deb in (state / "debs").glob("*.deb"):
            shutil.move(deb, folder / deb.name)


def find_photos(cache: Path, unpacked: Path) -> list[tuple[str, Path]]:
    """(package, file) of each photograph, downloaded and unpacked; missing ones are left out.

    Raises ValueError if the packages cannot be downloaded.
    """
    missing = [package for package in PHOTOS if not any(cache.glob(f"{package}_*.deb"))]
    try:
        if missing:
            print(f"downloading {', '.join(missing)}")
            download(missing, cache)
        unpacked.mkdir()
        photos = []
        for package, names in PHOTOS.items():
            deb = max(cache.glob(f"{package}_*.deb"))
            subprocess.run(
                ["dpkg-deb", "-x", str(deb), str(unpacked / package)],
                check=True,
                capture_output=True,
                text=True,
            )
            files = {path for path in (unpacked / package).rglob("*.jpg") if path.is_file()}
            for name in names:
                found = sorted(path for path in files if path.as_posix().endswith(f"/{name}"))
                photos += [(package, path) for path in found[:1]]
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", "") or "").strip().splitlines()
        raise ValueError(
            f"the wallpapers cannot be downloaded ({lines[-1] if lines else error}). Put the .deb "
            f"files of {', '.join(PHOTOS)} (packages.debian.org) into a folder and give it with "
            "--cache"
        ) from error
    return photos


def decode(source: Path, target: Path) -> None:
    """Write a photograph as a uint8 array (height, width, 3), long side at most MAX_SOURCE_PX."""
    with Image.open(source) as image:
        photo = image.convert("RGB")
    photo.thumbnail((MAX_SOURCE_PX, MAX_SOURCE_PX), Image.Resampling.LANCZOS)
    if min(photo.size) < MAX_CROP_PX:
        raise ValueError(f"{source.name}: {photo.size} is too small to cut {MAX_CROP_PX} px from")
    np.save(target, np.asarray(photo))


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """(width, height) of an image: 60 % landscape and 20 % portrait of 500 px, the rest spread."""
    kind = rng.random()
    if kind < 0.8:
        size = LONG_PX, int(rng.choice(SHORT_PX))
        return size if kind < 0.6 else size[::-1]
    long = int(rng.triangular(150, 400, MAX_CROP_PX))  # 517 on average
    short = int(long * rng.uniform(0.55, 1.0))
    return (long, short) if rng.random() < 0.75 else (short, long)


def cut(photo: np.ndarray, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A random place of a photograph (H, W, 3), reduced at random to width x height."""
    most = min(photo.shape[1] / width, photo.shape[0] / height)
    least = min(MIN_SHRINK, most)
    shrink = least * (most / least) ** rng.random()
    box_width, box_height = int(width * shrink), int(height * shrink)
    x = rng.integers(photo.shape[1] - box_width + 1)
    y = rng.integers(photo.shape[0] - box_height + 1)
    crop = Image.fromarray(photo[y : y + box_height, x : x + box_width])
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop.resize((width, height), Image.Resampling.LANCZOS)


def write_image(
    index: int, seed: int, arrays: Sequence[Path], train_dir: Path
) -> tuple[int, int, int]:
    """Write image `index`, a function of (seed, index) alone; returns width, height and bytes."""
    rng = np.random.default_rng((seed, index))
    width, height = draw_size(rng)
    quality = int(rng.integers(QUALITIES[0], QUALITIES[1], endpoint=True))
    best = b""
    for _ in range(MAX_DRAWS):
        photo = np.load(arrays[rng.integers(len(arrays))], mmap_mode="r")
        buffer = io.BytesIO()
        cut(photo, width, height, rng).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        best = max(best, buffer.getvalue(), key=len)
        if len(best) >= MIN_BYTES_PER_PX * width * height:
            break
    path = train_dir / f"photo_{index % NUM_CLASSES}" / f"{index:04d}.jpg"
    path.write_bytes(best)
    return width, height, len(best)


def make_corpus(args: argparse.Namespace) -> None:
    """Download, cut and write the corpus, whole or not at all, and print what it is.

    Raises ValueError if there are no photographs, OSError if the corpus cannot be written.
    """
    start = time.monotonic()
    partial = args.out.with_name(f"{args.out.name}.partial")
    with (
        tempfile.TemporaryDirectory(prefix="photo-corpus-") as name,
        ProcessPoolExecutor(args.num_workers) as pool,
    ):
        cache = args.cache or Path(name)
        photos = find_photos(cache, Path(name) / "unpacked")
        if not photos:
            raise ValueError(f"--cache {cache}: its packages hold none of the known photographs")
        arrays = [Path(name) / f"{i}.npy" for i in range(len(photos))]
        # list() raises what a worker raised.
        list(pool.map(decode, [path for _, path in photos], arrays))
        shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed
        for i in range(NUM_CLASSES):
            (partial / "train" / f"photo_{i}").mkdir(parents=True)
        tasks = [
            pool.submit(write_image, i, args.seed, arrays, partial / "train")
            for i in range(args.num_images)
        ]
        bar = tqdm(tasks, desc="photo corpus", unit="img", disable=None, leave=False)
        sizes = np.array([task.result() for task in bar])
    partial.rename(args.out)
    width, height, num_bytes = sizes.mean(axis=0)
    print(
        f"{args.out}: {args.num_images} images, {width:.0f}x{height:.0f} px and "
        f"{num_bytes / 1000:.1f} kB on average, {time.monotonic() - start:.0f} s"
    )
    counts = collections.Counter(package for package, _ in photos)
    listed = ", ".join(f"{counts[package]} {package}" for package in PHOTOS)
    print(f"from {len(photos)} of {sum(map(len, PHOTOS.values()))} known photographs: {listed}")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="photo_corpus.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--num_images", type=int, default=2000, metavar="N", help="[%(default)s]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="[%(default)s]")
    parser.add_argument(
        "--num_workers", type=int, default=os.cpu_count(), metavar="N", help="processes [all cores]"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder that has, or is to keep, the .deb files"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make one corpus; 0 if it is there afterwards, 2 if something must be changed."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for name, least in (("num_images", 1), ("seed", 0), ("num_workers", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} {getattr(args, name)}: must be at least {least}")
    if args.out.exists() and not (args.out.is_dir() and not any(args.out.iterdir())):
        parser.error(f"--out {args.out}: exists already; remove it or name another folder")
    for option, folder in (("--out", args.out.parent), ("--cache", args.cache)):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"{option}: {folder} cannot be made ({error.strerror}); name another")
    try:
        make_corpus(args)
    except ValueError as error:
        print(f"photo_corpus.py: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        remedy = f"make room at --out {args.out} and in {tempfile.gettempdir()} (TMPDIR)"
        print(f"photo_corpus.py: error: {error}; {remedy}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
