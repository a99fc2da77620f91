"""Where the bytes of a file are in a folder or an archive, so that nothing need be unpacked.

    members = archives.list_members(Path("tiny-imagenet-200.zip"), work_dir=Path("/tmp/work"))
    archives.read(members[0])

The kind of an archive is recognized by its content. The process that lists the members sends them
to others, which read them in any order; only a .tar.gz cannot be read that way and is decompressed
once. Hidden entries are left out and counted.
"""

import functools
import glob
import gzip
import os
import re
import shlex
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from resnet50.data import remedies, unused
from resnet50.packing.members import PLAIN, Member, Passed, folder_members, is_hidden
from resnet50.system import files

ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# signature, lengths of name and extra field (APPNOTE.TXT 4.3.7); sizes and crc32 come from
# the directory, since a zip written as a stream has zeros for them here
ZIP_LOCAL_HEADER = struct.Struct("<4s22xHH")
ZIP_TAIL = 66_000  # where the end records are: 65,535 bytes of comment at most, and themselves
ZIP_ENCRYPTED = 0x41  # ordinary or strong encryption
TAR_BLOCK = 512
# A name needs some kB; a damaged length must not become a read of gigabytes.
MAX_TAR_HEADER = 1 << 20
TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError)  # of hostile headers
# Listing waits for one small read per member. A network volume serves several at a time.
LISTING_THREADS = 16
# How split and 7-Zip name the parts of an archive: a.zip.001, a.tar.part_aa, a.tar.gz.part01, and
# of zip itself a.z01.
PART_OF_ARCHIVE = re.compile(
    r"(?P<whole>.+\.(?:zip|tar|tgz|gz|bz2|xz|zst|7z|rar))"
    r"(?P<mark>[._-]\d{1,4}|[._-]?part[._-]?(?:\d+|[a-z]{2,3})|[._-]?(?:a[a-z]|b[a-y]))",
    re.IGNORECASE,
)
SPLIT_ZIP = re.compile(r"\.z\d{2,3}")
TAR_ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}  # not the locale's


def list_members(source: Path, work_dir: Path, passed: Passed | None = None) -> list[Member]:
    """All files in a folder, .zip, .tar or .tar.gz, in no particular order.

    A tar inside a tar is listed too: its name without .tar becomes a folder. A .tar.gz is
    decompressed to work_dir, and left there for the next start. passed: collects what is left out.
    Raises ValueError naming archive, member and remedy.
    """
    source = source.absolute()
    passed = passed or Passed()
    if source.is_dir():
        # What is being made may lie in the source, and is no part of it.
        return list(folder_members(source, passed, leave_out=work_dir.absolute().parent))
    if not source.is_file():
        raise ValueError(f"{source}: no such file or folder")
    try:
        with open(source, "rb") as file:
            head = file.read(4)
    except OSError as error:
        raise ValueError(f"{source} cannot be read ({error.strerror})") from error
    refuse_parts([source])
    if head == b"PAR1":
        what = f"{source}: a parquet file, which holds no files to read in place"
        raise ValueError(f"{what}; {remedies.parquet_command(source)} writes its pictures out")
    hidden: set[str] = set()
    if head in (b"PK\x03\x04", b"PK\x05\x06"):
        members = _zip_members(source, passed, hidden)
    else:
        if head.startswith(b"\x1f\x8b"):
            source = _decompress(source, work_dir)
        with open(source, "rb") as file:
            window = _Window(file.fileno(), 0, source.stat().st_size)
            members = _tar_members(source, window, passed, hidden)
    for path in hidden:
        passed.unused.add(unused.HIDDEN, path)
    passed.note_empty({member.path for member in members} | hidden)
    for path, count in Counter(member.path for member in members).most_common(1):
        if count > 1:
            raise ValueError(f"{source}: {path} is in it {count} times; repack it with one")
    return members


def read(member: Member) -> bytes:
    """The bytes of one file. Raises ValueError if they are not what the archive promised."""
    if member.size < 0:
        return Path(member.file).read_bytes()
    descriptor, offset = _opened(member.file).number, member.offset
    if member.method != PLAIN:
        offset = _zip_data_offset(descriptor, member)
    data = os.pread(descriptor, member.size, offset)
    if len(data) != member.size:
        raise ValueError(_damaged(member.file, f"{member.path} is cut short"))
    if member.method == PLAIN:
        return data
    if member.method == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompress(data, -zlib.MAX_WBITS)
        except zlib.error as error:
            raise ValueError(_damaged(member.file, f"{member.path}: {error}")) from error
    if zlib.crc32(data) != member.crc32:
        raise ValueError(_damaged(member.file, f"{member.path} has the wrong crc32"))
    return data


class _Descriptor:
    """A file opened for pread, closed when nobody holds it any more."""

    def __init__(self, file: str) -> None:
        self.number = os.open(file, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):  # not if open failed
            os.close(self.number)


# One cache per process; a descriptor that a fork inherits is harmless, as pread moves no position.
_opened = functools.lru_cache(maxsize=8)(_Descriptor)


def refuse_parts(paths: Sequence[Path]) -> None:
    """Raise ValueError if one of these files is a part of an archive that was split, naming the
    command that joins them."""
    for path in paths:
        if match := PART_OF_ARCHIVE.fullmatch(path.name):
            whole, mark = match["whole"], match["mark"]
            # Not "whole.*", which would take a checksum file along.
            begin = re.match(r"[._-]?(?:part[._-]?)?", mark, re.IGNORECASE)[0]
            parts = _parts_in_order(path.with_name(f"{whole}{begin}"), mark[len(begin) :])
            joined = shlex.quote(str(path.with_name(whole)))
            raise ValueError(
                f"{path}: one part of an archive that was split: join all of them first, with `cat "
                f"{parts} > {joined}`, and give that file"
            )
        if path.suffix.lower() == ".zip" and path.with_suffix(".z01").is_file():
            _refuse_split_zip(path)
        if SPLIT_ZIP.fullmatch(path.suffix.lower()):
            _refuse_split_zip(path.with_suffix(".zip"))


def _parts_in_order(begin: Path, last: str) -> str:
    """The parts of an archive for `cat`: names that begin so, then numbers or letters like `last`.

    A shell sorts .10 before .2, so each number of digits that is there gets a pattern of its own.
    """
    name = shlex.quote(str(begin))
    if not last.isdigit():
        return name + "[a-z]" * len(last)
    ends = (
        path.name.removeprefix(begin.name)
        for path in begin.parent.glob(f"{glob.escape(begin.name)}*")
    )
    lengths = sorted({len(end) for end in (*ends, last) if end.isdigit()})
    return " ".join(name + "[0-9]" * length for length in lengths)


def _refuse_split_zip(path: Path) -> None:
    parts = f"{shlex.quote(str(path.with_suffix('')))}.z*"
    whole = shlex.quote(str(path.with_name(f"{path.stem}-whole.zip")))
    raise ValueError(
        f"{path}: one part of a zip that was split (.z01, .z02, ..., .zip): join all of them "
        f"first, with `zip -s 0 {shlex.quote(str(path))} --out {whole}` (or `cat {parts} > "
        f"{whole}` and `zip -FF {whole} --out` another name), and give that file"
    )


def _damaged(where: object, what: str) -> str:
    return f"{where}: {what}; the file is damaged, download or copy it again"


def _plain(name: str, archive: object) -> str:
    """A member's name in plain form; "" for the top. ValueError if it points outside."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        what = f"{archive}: member {name!r} points outside the archive"
        raise ValueError(f"{what}; do not trust it, get it from its publisher")
    if name.startswith("/"):
        what = f"{archive}: member {name!r} has an absolute name, as `tar -P` writes them"
        raise ValueError(
            f"{what}; unpack it, which leaves out the first slash, and give the folder"
        )
    return "/".join(parts)


class _Window:
    """A section of a file from which tarfile reads headers as if it were a separate file."""

    def __init__(self, descriptor: int, begin: int, size: int) -> None:
        self.descriptor, self.begin, self.size = descriptor, begin, size
        self.position = 0

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        self.position = position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_TAR_HEADER or self.position < 0:
            raise tarfile.ReadError("impossible length in a header")
        size = max(0, min(size, self.size - self.position))
        data = os.pread(self.descriptor, size, self.begin + self.position)
        self.position += len(data)
        return data


def _tar_infos(
    window: _Window, where: str, passed: Passed | None = None
) -> Iterator[tarfile.TarInfo]:
    """Headers of a tar; passed: collects what follows its end. Raises ValueError without
    a proper end."""
    try:
        tar = tarfile.TarFile(fileobj=window, **TAR_ENCODING)
    except TAR_ERRORS as error:
        what = f"{where}: neither a folder nor a whole .zip, .tar or .tar.gz ({error})"
        raise ValueError(f"{what}; download it again, or unpack it and give the folder") from error
    try:
        while (info := tar.next()) is not None:
            tar.members.clear()  # it keeps them all, a kB each
            if info.size < 0:  # would lead back
                raise tarfile.ReadError(f"{info.name} has a negative size")
            yield info
    except TAR_ERRORS as error:
        raise ValueError(_damaged(where, str(error))) from error
    # To tarfile, a header that is truncated or invalid is the end of the archive.
    window.seek(tar.offset)
    if window.read(TAR_BLOCK) != bytes(TAR_BLOCK):
        raise ValueError(_damaged(where, f"cut short or broken at byte {tar.offset:,}"))
    if passed is not None:
        _count_after_end(window, where, passed)


def _count_after_end(window: _Window, where: str, passed: Passed) -> None:
    """Count what follows a tar's end, which is where `cat a.tar b.tar` puts the files of b.

    tar itself stops there too without `--ignore-zeros`, so these files are named but not read.
    """
    while block := window.read(MAX_TAR_HEADER):
        if stripped := block.lstrip(b"\0"):
            break
    else:
        return
    begin = (window.position - len(stripped)) // TAR_BLOCK * TAR_BLOCK
    rest = _Window(window.descriptor, window.begin + begin, window.size - begin)
    try:
        names = [info.name for info in tarfile.TarFile(fileobj=rest, **TAR_ENCODING)]
    except TAR_ERRORS:
        names = []
    for name in names or [f"{window.size - begin:,} bytes"]:
        passed.unused.add(unused.AFTER_END, f"{where}: {name}")


def _tar_members(
    file: Path, window: _Window, passed: Passed, hidden: set[str], inside: str = ""
) -> list[Member]:
    """Files of a tar; `inside` names it if another tar holds it. hidden: collects their paths."""
    where = f"{file}: {inside}.tar" if inside else str(file)
    members, inner = [], []
    if inside:
        passed.add_folder(inside)
    for info in _tar_infos(window, where, passed):
        path = _plain(info.name, where)
        whole = f"{inside}/{path}" if inside else path
        if is_hidden(path):
            if not info.isdir():
                hidden.add(whole)
            continue
        if info.isdir():
            passed.add_folder(whole)
            continue
        if not info.isreg() or info.issparse():
            what = f"{where}: member {info.name!r} is a link, device or sparse file"
            raise ValueError(f"{what}; unpack the archive, look at it and give the folder")
        start = window.begin + info.offset_data
        if path.endswith(".tar") and not inside:
            inner.append((_Window(window.descriptor, start, info.size), path.removesuffix(".tar")))
        else:
            members.append(Member(whole, str(file), start, info.size))
            passed.add_folder(whole.rpartition("/")[0])

    def listed(window: _Window, name: str) -> tuple[list[Member], Passed, set[str]]:
        own_passed, own_hidden = Passed(), set()  # each thread counts for itself
        return _tar_members(file, window, own_passed, own_hidden, name), own_passed, own_hidden

    if inner:
        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            for found, own_passed, own_hidden in pool.map(listed, *zip(*inner, strict=True)):
                members += found
                passed.include(own_passed)
                hidden |= own_hidden
    return members


def _decompress(source: Path, work_dir: Path) -> Path:
    """Write the tar of a .tar.gz to work_dir, unless it is there already; returns its path."""
    name = source.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")
    tar = work_dir.absolute() / f"{name}.tar"
    changed = int(source.stat().st_mtime)
    # The tar gets its source's time, which tells it apart from that of another file of that name.
    if tar.exists() and int(tar.stat().st_mtime) == changed:
        return tar
    work_dir.mkdir(parents=True, exist_ok=True)
    try:
        with gzip.open(source) as unpacked, files.replaced(tar, "wb", sync=True) as file:
            shutil.copyfileobj(unpacked, file, 1 << 20)
            file.flush()  # what is written later would change the time again
            os.utime(file.fileno(), (changed, changed))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(_damaged(source, str(error))) from error
    return tar


def _zip_infos(file: Path) -> list[zipfile.ZipInfo]:
    """A zip's directory. Raises ValueError if it is not whole."""
    try:
        with open(file, "rb") as raw, zipfile.ZipFile(raw) as archive:
            infos = archive.infolist()
            raw.seek(max(0, file.stat().st_size - ZIP_TAIL))
            tail = raw.read()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise ValueError(_damaged(file, f"cut short or broken ({error})")) from error
    # zipfile does not count: one wrong length in the directory would hide all that follows it.
    end = tail.rfind(b"PK\x05\x06")
    count = int.from_bytes(tail[end + 10 : end + 12], "little")
    bits = 16
    end64 = tail.rfind(b"PK\x06\x06", 0, end)
    if count == 0xFFFF and end64 >= 0:
        count = int.from_bytes(tail[end64 + 32 : end64 + 40], "little")
        bits = 64
    if count != len(infos) % (1 << bits):  # some writers let 16 bits overflow
        raise ValueError(_damaged(file, f"its directory lists {len(infos):,} of {count:,} files"))
    return infos


def _zip_members(file: Path, passed: Passed, hidden: set[str]) -> list[Member]:
    """Files of a zip, by its directory. hidden: collects their paths."""
    members = []
    end = file.stat().st_size
    infos = _zip_infos(file)
    # Some Windows programs separate folders by backslashes, which the format forbids.
    is_windows = not any("/" in info.filename for info in infos)
    for info in infos:
        name = info.filename.replace("\\", "/") if is_windows else info.filename
        path = _plain(name, file)
        if is_hidden(path):
            if not name.endswith("/"):
                hidden.add(path)
            continue
        if name.endswith("/"):
            passed.add_folder(path)
            continue
        if not 0 <= info.header_offset <= end - info.compress_size:
            raise ValueError(_damaged(file, f"{path} is beyond the end"))
        link = stat.S_ISLNK(info.external_attr >> 16)
        if link or info.flag_bits & ZIP_ENCRYPTED or info.compress_type not in ZIP_METHODS:
            raise ValueError(
                f"{file}: member {path} is a link, encrypted or not deflated but compressed by "
                f"method {info.compress_type}; unpack the archive and give the folder"
            )
        place = (info.header_offset, info.compress_size, info.compress_type, info.CRC)
        members.append(Member(path, str(file), *place))
        passed.add_folder(path.rpartition("/")[0])
    first = min((info.header_offset for info in infos), default=0)
    if first:
        passed.unused.add(unused.AFTER_END, f"{file}: {first:,} bytes before its first file")
    return members


def _zip_data_offset(descriptor: int, member: Member) -> int:
    """Where a zip member's data begin: after its local header, which alone knows its length."""
    header = os.pread(descriptor, ZIP_LOCAL_HEADER.size, member.offset)
    if len(header) != ZIP_LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise ValueError(_damaged(member.file, f"{member.path} has no header"))
    _, name_bytes, extra_bytes = ZIP_LOCAL_HEADER.unpack(header)
    offset = member.offset + ZIP_LOCAL_HEADER.size
    name = os.pread(descriptor, name_bytes, offset)
    # A wrong bit in the directory's name would be a wrong class. Names beyond ASCII may rightly
    # differ: the directory can hold a second, Unicode name.
    if name.isascii() and member.path not in (
        _plain(name.decode("ascii"), member.file),
        _plain(name.decode("ascii").replace("\\", "/"), member.file),
    ):
        raise ValueError(_damaged(member.file, f"{member.path} is named {name!r} in its header"))
    return offset + name_bytes + extra_bytes
