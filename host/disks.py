"""The disks of a host: which of them is the data volume, and what is on it. Reads, never writes.

    disk = disks.choose(disks.read(), wanted="vol-0123456789abcdef0")
    disks.contents(disk.path), disks.not_blank(disk.path)

Runs before there is an environment: standard library, Python 3.10. NVMe names change between boots,
so a volume is recognized by model and serial (docs.aws.amazon.com/ebs, "Map Amazon EBS volumes to
NVMe device names"). lsblk's FSTYPE is cached by udev, so blkid looks at the device itself.
"""

import errno
import json
import os
import re
import shlex
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from host import commands

EBS = "Amazon Elastic Block Store"
INSTANCE_STORE = "Amazon EC2 NVMe Instance Storage"
# And what is erased when a host of Google's or Microsoft's stops.
EPHEMERAL = (
    *(INSTANCE_STORE, "nvme_card", "EphemeralDisk"),
    *("Microsoft NVMe Direct Disk", "Microsoft NVMe Direct Disk v2"),
)
# NAME is what makes lsblk list partitions within their disks.
COLUMNS = "NAME,PATH,TYPE,SIZE,MODEL,SERIAL,MOUNTPOINTS"
WHOLE = ("disk", "loop")  # what may be formatted; a loop device is an image file
MIB = 1 << 20
READ_WHOLE_BYTES = 8 << 30  # up to this size every byte is looked at
NUM_SAMPLES, SAMPLE_BYTES = 8192, 4096
BLKID_NOTHING = 2  # exit code of `blkid -p`: no signature that it knows
# Mount points of the host's own.
SYSTEMS_OWN = r"/$|/(boot|efi|etc|home|root|snap|tmp|usr|var)(/|$)|\[SWAP\]"
# Of a root, a /usr or a /boot.
SYSTEM_FILES = (
    *("etc/os-release", "usr/lib/os-release", "lib/os-release", "etc/fstab", "etc/passwd"),
    *("sbin/init", "grub/grub.cfg", "grub2/grub.cfg", "extlinux/extlinux.conf"),
)
FOLDER = "train on a folder of this host with --data_dir DIR"


@dataclass(frozen=True)
class Disk:
    """A block device as lsblk lists it; `parts` are partitions and what is built on it."""

    path: str
    kind: str
    size_bytes: int
    model: str
    serial: str
    mounts: tuple[str, ...]
    parts: tuple["Disk", ...]

    def tree(self) -> Iterator["Disk"]:
        """This disk and all that is on it."""
        yield self
        for part in self.parts:
            yield from part.tree()

    @property
    def volume_id(self) -> str:
        """vol-0123..., the way the EC2 console spells the serial number; empty without one."""
        is_id = self.serial.startswith("vol")
        return f"vol-{self.serial[3:].removeprefix('-')}" if is_id else ""

    def __str__(self) -> str:
        name = f"{self.path} ({self.volume_id})" if self.volume_id else self.path
        return f"{name}, {self.size_bytes / 1e9:.0f} GB"


def read() -> list[Disk]:
    """All disks of this host. Raises ValueError if lsblk fails."""
    command = ["lsblk", "--json", "--tree", "--bytes", "--output", COLUMNS]
    listed = commands.run(command)
    if "unknown column" in listed.stderr:  # before util-linux 2.37 it names one mount point only
        listed = commands.run([*command[:-1], COLUMNS.removesuffix("S")])
    if listed.returncode:
        raise ValueError(f"lsblk cannot list the disks ({listed.stderr.strip()}): or {FOLDER}")
    try:
        return parse(json.loads(listed.stdout))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"what lsblk says of the disks cannot be understood ({error!r}; see "
            f"{shlex.join(command)}): or {FOLDER}"
        ) from error


def parse(listed: Mapping) -> list[Disk]:
    """Disks out of lsblk's JSON."""
    return [_disk(entry) for entry in listed["blockdevices"]]


def _disk(entry: Mapping) -> Disk:
    """One entry of lsblk's JSON, with what is within it."""
    return Disk(
        path=entry["path"],
        kind=entry["type"],
        size_bytes=int(entry["size"]),
        model=(entry.get("model") or "").strip(),
        serial=(entry.get("serial") or "").strip(),
        mounts=tuple(
            mount for mount in entry.get("mountpoints") or [entry.get("mountpoint")] if mount
        ),
        parts=tuple(_disk(child) for child in entry.get("children", ())),
    )


def why_not(disk: Disk) -> str:
    """Why a disk cannot be the data volume; empty if nothing rules it out."""
    mounts = [mount for part in disk.tree() for mount in part.mounts]
    if "/" in mounts:
        return "holds the root file system"
    if "[SWAP]" in mounts:
        return "is swap space"
    if mounts:
        return f"is mounted at {', '.join(mounts)}"
    if built := sorted({part.kind for part in disk.tree()} - {"disk", "loop", "part"}):
        return f"is part of {', '.join(built)}"
    if disk.model in EPHEMERAL:
        return "is instance store, which is erased when the host stops; it is for --cache"
    return ""


def choose(disks: Sequence[Disk], wanted: str) -> Disk:
    """The data volume: the wanted one, or the only EBS volume that nothing uses.

    wanted: vol-..., a device or a link to one, or "". Raises ValueError naming the candidates.
    """
    if wanted:
        disk, whole = _named(disks, wanted)
        if reason := why_not(whole):
            hint = f": use it there, --mount {place}" if (place := _place(whole)) else ""
            raise ValueError(f"--volume {wanted}: {whole} {reason}{hint}")
        return disk
    real = [disk for disk in disks if disk.kind == "disk" and disk.size_bytes]
    if is_container(real):
        names = "; ".join(str(disk) for disk in real)
        raise ValueError(
            f"this looks like a container, which sees its host's disks ({names}) but cannot mount "
            f"them: {FOLDER}"
        )
    reasons = {disk: why_not(disk) or _not_ebs(disk) for disk in real}
    candidates = [disk for disk, reason in reasons.items() if not reason]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = "; ".join(str(disk) for disk in candidates)
        raise ValueError(f"{len(candidates)} volumes could be it: {names}. Say which: --volume ID")
    seen = "; ".join(f"{disk} {reason}" for disk, reason in reasons.items()) or "no disk at all"
    raise ValueError(f"no data volume is attached ({seen}). {_remedy(real)}; or {FOLDER}")


def _remedy(disks: Sequence[Disk]) -> str:
    """What to do where none of them is an EBS volume that nothing uses."""
    if places := [place for disk in disks if (place := _place(disk))]:
        return f"To use one where it is mounted: --mount {', or --mount '.join(places)}"
    if unknown := [f"{disk}: --volume {disk.path}" for disk in disks if not why_not(disk)]:
        return f"Not every host tells a volume's model; this may be one: {', or '.join(unknown)}"
    if in_container():
        return "This looks like a container, whose volumes its host mounts"
    return "Attach an EBS volume in the EC2 console"


def _place(disk: Disk) -> str:
    """Where a volume is mounted already; empty if it is not, and for the disks of a system."""
    mounts = [mount for part in disk.tree() for mount in part.mounts]
    if disk.model in EPHEMERAL or any(re.match(SYSTEMS_OWN, mount) for mount in mounts):
        return ""
    return mounts[0] if mounts else ""


def is_container(disks: Sequence[Disk]) -> bool:
    """Whether these are disks of another system, listed without the files to use them by."""
    mounts = [mount for disk in disks for part in disk.tree() for mount in part.mounts]
    return "/" not in mounts and not all(Path(disk.path).exists() for disk in disks)


def in_container() -> bool:
    """Whether a runtime of containers has left its mark."""
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    return any(mark.exists() for mark in marks) or "container" in os.environ


def _not_ebs(disk: Disk) -> str:
    """Why a disk is not an EBS volume; empty if it is one."""
    return "" if disk.model == EBS else f"is not an EBS volume ({disk.model or 'unknown model'})"


def _named(disks: Sequence[Disk], wanted: str) -> tuple[Disk, Disk]:
    """The device that --volume names, and the whole disk that it is on."""
    path = os.path.realpath(wanted) if wanted.startswith("/") else ""
    for whole in disks:
        for disk in whole.tree():
            if disk.path == path or (disk.volume_id and disk.volume_id == wanted):
                return disk, whole
    names = "; ".join(str(d) for d in disks if d.kind == "disk" and d.size_bytes) or "none"
    raise ValueError(
        f"--volume {wanted}: no such volume is attached. There are: {names}. A volume that was "
        "just attached takes some seconds: --wait_s 60"
    )


def contents(path: str) -> dict[str, str]:
    """What blkid finds on the device itself: TYPE, UUID, PTTYPE and so on; empty for nothing.

    Raises ValueError if it cannot tell, since such a device must not be touched.
    """
    found = commands.run(["blkid", "-p", "-o", "export", path])
    if found.returncode == BLKID_NOTHING and not found.stderr.strip():
        _check_readable(path)  # of what it cannot open, blkid says the same
        return {}
    if found.returncode:
        why = found.stderr.strip() or "several signatures"
        raise ValueError(f"{path}: blkid cannot tell what is on it ({why}): it is left alone")
    pairs = (line.partition("=") for line in found.stdout.splitlines())
    # Its place in a partition table is not what is on it.
    outer = ("DEVNAME", "PART_ENTRY_")
    return {name: value for name, _, value in pairs if not name.startswith(outer)}


def _check_readable(path: str) -> None:
    """Raise ValueError for a device that cannot be read."""
    try:
        with open(path, "rb", buffering=0) as device:
            device.read(SAMPLE_BYTES)
    except OSError as error:
        why = error.strerror
        if not Path(path).exists():
            why += ": is this a container, which only sees its host's disks?"
        raise ValueError(f"{path} cannot be read ({why}) and is left alone. Or {FOLDER}") from error


def operating_system(path: str, kind: str) -> str:
    """What on an ext4 or xfs file system shows that a host starts from it; empty if nothing does.

    It is mounted read-only for a moment, where no other process sees it. Raises ValueError if that
    cannot be done.
    """
    options = {"ext4": "ro,noload", "xfs": "ro,norecovery,nouuid"}[kind]
    look = f'cd "$1" && ls -d {" ".join(SYSTEM_FILES)} 2>/dev/null; cd /; umount "$1"'
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", kind, "-o", options, path, folder]
        shell = ["sh", "-c", f"{shlex.join(mount)} && {{ {look}; }}", "sh", folder]
        looked = commands.run(["unshare", "--mount", "--propagation", "private", *shell])
    if looked.returncode:
        why = looked.stderr.strip()
        raise ValueError(f"{path} cannot be looked at ({why}) and is left alone. Or {FOLDER}")
    return ", ".join(looked.stdout.split())


def size_of(path: str) -> int:
    """Bytes of a device."""
    with open(path, "rb") as device:
        return device.seek(0, os.SEEK_END)


def in_use(path: str) -> bool:
    """Whether the kernel has given the device to a mount, swap, LVM, RAID or another program."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    return False


def not_blank(path: str) -> str:
    """What is on a device that should be blank; empty if nothing was found.

    Blank means no signature known to blkid or wipefs, and only zeros: everywhere up to 8 GiB; on
    more, where file systems keep headers and copies of them, and at 8,192 places between. Raises
    ValueError.
    """
    if found := contents(path):
        return found.get("TYPE") or f"a partition table ({found.get('PTTYPE', 'unknown')})"
    wiped = commands.run(["wipefs", "--no-act", path])
    if wiped.returncode or wiped.stdout.strip():
        return wiped.stdout.strip() or f"something that wipefs cannot read: {wiped.stderr.strip()}"
    size = size_of(path)
    with open(path, "rb", buffering=0) as device:
        for offset, length in places(size):
            device.seek(offset)
            if device.read(length).strip(b"\0"):
                return f"data of an unknown kind, at byte {offset:,}"
    return ""


def places(size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what `not_blank` reads of a device with this many bytes."""
    if size <= READ_WHOLE_BYTES:
        for offset in range(0, size, MIB):
            yield offset, min(MIB, size - offset)
        return
    for start in (0, size - 16 * MIB):
        for offset in range(start, start + 16 * MIB, MIB):
            yield offset, MIB
    yield from ((offset, SAMPLE_BYTES) for offset in ext4_copies(size))
    for number in range(NUM_SAMPLES):
        yield size * number // NUM_SAMPLES // SAMPLE_BYTES * SAMPLE_BYTES, SAMPLE_BYTES


def ext4_copies(size: int) -> Iterator[int]:
    """Where ext4 keeps copies of its superblock: groups 1 and powers of 3, 5, 7, by block size.

    kernel.org/doc/html/latest/filesystems/ext4, "Block Groups", sparse_super.
    """
    groups = {1} | {base**power for base in (3, 5, 7) for power in range(1, 12)}
    for block in (1024, 2048, 4096):
        for group in sorted(groups):
            offset = group * 8 * block * block + (block if block == 1024 else 0)
            if offset + SAMPLE_BYTES <= size:
                yield offset


def file_system_bytes(path: str, mount: str, kind: str) -> int:
    """Size that a mounted ext4 or xfs file system reports for itself. Raises ValueError."""
    if kind == "xfs":  # its superblock on the disk is out of date while it is mounted
        info = commands.run(["xfs_info", mount])
        sizes = re.search(r"^data .*bsize=(\d+) +blocks=(\d+)", info.stdout, re.MULTILINE)
        if sizes is None:
            raise ValueError(f"xfs_info {mount} cannot tell its size: {info.stderr.strip()}")
        return int(sizes[1]) * int(sizes[2])
    with open(path, "rb") as device:
        head = device.read(4096)
    low, _, _, _, _, log_block = struct.unpack_from("<6I", head, 1024 + 4)
    (high,) = struct.unpack_from("<I", head, 1024 + 0x150)
    return (low + (high << 32)) << (10 + log_block)
