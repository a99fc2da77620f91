"""Mount the data volume permanently: find it, check it, mount it by UUID, let it grow.

    sudo python3 -m host.volume --mount /mnt/imagenet
    sudo python3 -m host.volume --mount /mnt/imagenet --volume vol-0123456789ab --format_if_blank
    sudo python3 -m host.volume --mount /mnt/imagenet --dry_run

What is on a volume is never changed, with one exception: --format_if_blank puts ext4 on a volume on
which nothing at all was found. Run again, it says that it is done. setup_and_train.sh calls it
with the system's Python: standard library, Python 3.10. Exit codes: 0 done, 2 change something.
"""

import argparse
import fcntl
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from host import commands, disks, fstab, mounts, owner
from host.changes import HostChanges
from host.disks import MIB, Disk
from host.mounts import Mounted
from resnet50.config.command_line import Parser, print_error

LABEL = "imagenet"
GROWS_BY = 64 * MIB  # partitions and file systems leave less than this unused
LOCK, LOCK_S = Path("/run/setup_and_train.volume.lock"), 900.0


def mount_volume(args: argparse.Namespace, host: HostChanges) -> None:
    """Have the volume mounted. Raises ValueError or OSError if something must be changed."""
    if there := mounts.at(args.mount):
        mounts.check(there, args.mount, args.volume)
        print(f"{there.device} is mounted at {args.mount}")
        mounts.keep_for_boot(there, args.mount, host)
    elif fields := fstab.fields_for(args.mount):
        there = mount_known(fields, args, host)
    else:
        there = mount_anew(args, host)
    if there is None:  # in a dry run
        return
    if there.is_volume():
        try:
            grow(there.device, args.mount, host)
        except ValueError as error:
            print(f"warning: {there.device} stays at its size: {error}")
    owner.give_to_caller(Path(args.mount), host)


def mount_known(
    fields: Sequence[str], args: argparse.Namespace, host: HostChanges
) -> Mounted | None:
    """Mount what fstab has for the mount point; None in a dry run. Raises ValueError."""
    source, mount = fields[0], args.mount
    if names := names_in(Path(mount)):
        print(
            f"warning: {mount} holds files of the disk below it ({names}), which the volume hides: "
            f"to see them again, sudo umount {mount}"
        )
    deadline = time.monotonic() + (0 if host.dry_run else args.wait_s)
    while not (devices := fstab.devices_of(source)) and time.monotonic() < deadline:
        time.sleep(1)
    if len(devices) > 1 and {*fields[2:3]} & {*mounts.KINDS, "auto"}:
        raise ValueError(
            f"{fstab.PATH} has {source} for {mount}, and several disks have that, as copies of a "
            f"snapshot have ({', '.join(devices)}): detach all but one"
        )
    why = "is not attached"
    if devices:
        fstab.tell_systemd(host)  # the line may have been edited since the boot
        host.run("mkdir", "-p", mount)
        try:
            host.run("mount", mount)
            why = "is still not mounted"  # nofail makes mount succeed without it
        except ValueError as error:
            why = f"cannot be mounted ({error})"
        if host.dry_run:
            return None
    if there := mounts.at(mount):
        mounts.check(there, mount, args.volume)
        print(f"{there.device} is mounted at {mount}")
        return there
    raise ValueError(
        f"{fstab.PATH} has {source} for {mount}, which comes before --volume and "
        f"--format_if_blank, and {why}. Attach that volume (--wait_s 60 waits for it), or remove "
        "the line to use another one"
    )


def mount_anew(args: argparse.Namespace, host: HostChanges) -> Mounted | None:
    """Choose, perhaps format, and mount a volume that is not in fstab; None in a dry run."""
    check_mount_point(Path(args.mount))
    disk = wait_for_volume(args.volume, 0 if host.dry_run else args.wait_s)
    print(f"the data volume is {disk}")
    device, found = what_to_mount(disk)
    if not found:
        if disk.kind not in disks.WHOLE:
            raise ValueError(without_file_system(disk.path))
        if not args.format_if_blank:
            check_is_blank(disk)
            raise ValueError(
                f"{disk} has no file system. If it is new, and nothing on it is worth keeping, add "
                "--format_if_blank"
            )
        format_blank(disk, host)
        device, found = disk.path, {"TYPE": "ext4"}
    if disks.in_use(device):
        raise ValueError(f"{disk} is in use by the kernel or another program: it is left alone")
    if "UUID" in found and (what := disks.operating_system(device, found["TYPE"])):
        raise ValueError(
            f"{disk} is a disk that a host starts from (it has {what}): it is left alone. Attach a "
            f"volume for data; or mount this one yourself, at {args.mount}, and come back"
        )
    return mount_for_good(device, found, args.mount, host)


def names_in(folder: Path) -> str:
    """The first names in a folder; empty if it is, or is not there."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:5])


def check_mount_point(mount: Path) -> None:
    """Raise ValueError if something is there that a mount would hide."""
    if mount.exists() and not mount.is_dir():
        raise ValueError(f"--mount {mount}: is a file; give a folder that is new or empty")
    if names := names_in(mount):
        raise ValueError(
            f"--mount {mount}: holds files ({names}), which a volume mounted there would hide: "
            "move them away, or give another --mount"
        )


def wait_for_volume(wanted: str, wait_s: float) -> Disk:
    """The data volume, after waiting for one that is being attached."""
    deadline = time.monotonic() + wait_s
    while True:
        if Path("/run/udev").exists():
            commands.run(["udevadm", "settle", "--timeout=20"])
        try:
            return disks.choose(disks.read(), wanted)
        except ValueError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(1)


def what_to_mount(disk: Disk) -> tuple[str, dict[str, str]]:
    """The device with the file system, and what blkid says of it: nothing if the disk has nothing.

    Raises ValueError naming what else is there.
    """
    found = disks.contents(disk.path)
    if "PTTYPE" in found and "TYPE" not in found:
        parts = {part.path: disks.contents(part.path) for part in disk.parts}
        systems = {path: has for path, has in parts.items() if has.get("TYPE") in mounts.KINDS}
        if len(systems) == 1:
            return next(iter(systems.items()))
        raise ValueError(f"{disk} has a partition table: {why_no_part(disk.path, parts)}")
    if found and found.get("TYPE") not in mounts.KINDS:
        raise ValueError(
            f"{disk} holds {found.get('TYPE', 'something unknown')}, not ext4 or xfs: it is left "
            "alone. Attach another volume, or mount it yourself and give --data_dir"
        )
    return disk.path, found


def why_no_part(path: str, parts: dict[str, dict[str, str]]) -> str:
    """Why none of a disk's partitions is the one to mount, and what to do."""
    blank = [part for part, has in parts.items() if not has]
    if parts and len(blank) == len(parts):
        return f"{without_file_system(blank[0])} with --volume {blank[0]}"
    if parts:
        listed = ", ".join(f"{part}: {has.get('TYPE', 'nothing')}" for part, has in parts.items())
        return f"not exactly one of {listed} can be mounted. Choose one with --volume DEVICE"
    shown = commands.run(["partx", "--show", "--noheadings", "--output", "NR", path])
    if shown.returncode or shown.stdout.strip():
        return f"the system has not read its partitions yet: sudo partx --update {path}"
    return (
        "it has no partitions. If nothing on it is worth keeping: sudo wipefs --all "
        f"{path}, and come back with --format_if_blank"
    )


def without_file_system(partition: str) -> str:
    """What to do with a blank partition: only whole volumes are formatted."""
    return (
        f"{partition} is a partition without a file system. If nothing on it is worth keeping: "
        f"sudo mkfs.ext4 {partition}, and come back"
    )


def identity(disk: Disk) -> dict[str, object]:
    """What tells a volume from another one at the same path."""
    return {"serial": disk.serial or disk.path, "size_bytes": disk.size_bytes}


def check_is_blank(disk: Disk) -> None:
    """Raise ValueError for a volume that holds anything."""
    if what := disks.not_blank(disk.path):
        raise ValueError(
            f"{disk} is not blank ({what}): it is left alone. If nothing on it is worth keeping, "
            f"as after a format that was interrupted: sudo mkfs.ext4 {disk.path}, and come back"
        )


def format_blank(disk: Disk, host: HostChanges) -> None:
    """Put ext4 on a volume without anything on it. Raises ValueError before anything is written."""
    if disk.kind not in disks.WHOLE:
        raise ValueError(f"{disk} is a {disk.kind}: only whole volumes are formatted")
    if disk.parts:
        raise ValueError(f"{disk} has parts ({', '.join(part.path for part in disk.parts)})")
    if disks.in_use(disk.path):
        raise ValueError(f"{disk} is in use by the kernel or another program: it is left alone")
    check_is_blank(disk)
    again = disks.choose(disks.read(), disk.path)  # looking took a while: is it still the same?
    if identity(again) != identity(disk) or again.parts:
        raise ValueError(f"{disk} is another device now: it is left alone")
    # -F: we have looked more closely than mkfs does. -m 0: no room is reserved for root's daemons.
    # In a session of its own, so that it ends well when this setup is stopped: half a file system
    # would not be blank any more. It writes the superblock last, so what has one is whole.
    words = ["mkfs.ext4", "-q", "-F", "-L", LABEL, "-m", "0", disk.path]
    host.run(*words, own_session=True)


def mount_for_good(
    device: str, found: dict[str, str], mount: str, host: HostChanges
) -> Mounted | None:
    """Mount, now and through fstab at every boot; None in a dry run."""
    kind = found["TYPE"]
    uuid = found.get("UUID") or disks.contents(device).get("UUID", "")
    if host.dry_run:
        uuid = uuid or "that of the new file system"
    line = mounts.fstab_line(device, kind, uuid, mount)
    made = not Path(mount).exists()
    try:
        fstab.add(line, host)
        host.run("mkdir", "-p", mount)
        host.run("mount", mount)
        if host.dry_run:
            return None
        there = mounts.at(mount)
        if there is None or there.device != device:
            what = there.device if there else "nothing"
            raise ValueError(f"{what} was mounted at {mount} instead of {device}")
    except (ValueError, OSError):
        take_back(mount, line, made, host)
        raise
    return there


def take_back(mount: str, line: str, made: bool, host: HostChanges) -> None:
    """Undo a mount that went wrong; what cannot be undone is only a warning beside the error."""
    try:
        fstab.remove(line, host)
        if mounts.at(mount):
            host.run("umount", mount)
        if made and Path(mount).exists():
            Path(mount).rmdir()
    except (ValueError, OSError) as error:
        print(f"warning: {error}")


def grow(device: str, mount: str, host: HostChanges) -> None:
    """Let a file system fill a volume that was made larger; never shrinks it."""
    kind = disks.contents(device).get("TYPE", "")
    partition = Path("/sys/class/block", Path(device).name, "partition")
    if partition.exists():
        whole = f"/dev/{partition.resolve().parent.parent.name}"
        number, start = partition.read_text().strip(), partition.with_name("start").read_text()
        unused = disks.size_of(whole) - int(start) * 512 - disks.size_of(device)
        if unused >= GROWS_BY:
            host.run("growpart", whole, number)
    if disks.size_of(device) - disks.file_system_bytes(device, mount, kind) < GROWS_BY:
        return
    if kind == "ext4":
        host.run("resize2fs", device)
    else:
        host.run("xfs_growfs", mount)


@contextmanager
def locked() -> Iterator[None]:
    """One at a time, however many setups there are. Raises ValueError if it is never our turn."""
    deadline = time.monotonic() + LOCK_S
    with open(LOCK, "w") as file:
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError) as error:
                if time.monotonic() > deadline:
                    raise ValueError(f"another setup has held {LOCK} for {LOCK_S:.0f} s") from error
            time.sleep(0.2)
        yield


def seconds(text: str) -> float:
    """For argparse: how long to wait."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: give a number of seconds, 0 or more")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Mount; 0 if the volume is mounted, 2 if something must be changed."""
    parser = Parser("host/volume.py", __doc__)
    add = parser.add_argument
    add("--mount", default="/mnt/imagenet", metavar="DIR", help="mount point [/mnt/imagenet]")
    add("--volume", default="", metavar="ID", help="vol-... or /dev/... [the only one possible]")
    add("--format_if_blank", action="store_true", help="put ext4 on a volume with nothing on it")
    add(
        "--wait_s",
        type=seconds,
        default=0,
        metavar="S",
        help="seconds to wait for a volume being attached [0]",
    )
    add("--dry_run", action="store_true", help="print what would be changed, change nothing")
    args = parser.parse_args(argv)
    if not args.mount.startswith("/") or args.mount.rstrip("/") == "":
        parser.error(f"--mount {args.mount}: give an absolute path other than /")
    if set(args.mount) & set(" \t\n\\#"):
        parser.error(f"--mount {args.mount}: fstab allows no spaces, backslashes or # in it")
    args.mount = args.mount.rstrip("/")
    if os.geteuid() != 0 and not args.dry_run:
        parser.error("volumes are mounted by root: sudo python3 -m host.volume ...")
    host = HostChanges(args.dry_run)
    try:
        with nullcontext() if args.dry_run else locked():
            mount_volume(args, host)
    except (ValueError, OSError) as error:
        return print_error("host/volume.py", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
