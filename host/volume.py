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
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from host import disks, fstab
from host.changes import HostChanges
from host.disks import MIB, Disk
from resnet50.config.command_line import Parser, print_error

# Records that mkfs was begun on a blank volume, so that a kill in the middle can be repaired.
INTENT = Path("/var/lib/setup_and_train.formatting.json")
OPTIONS = "defaults,nofail,x-systemd.device-timeout=30s"
LABEL = "imagenet"
GROWS_BY = 64 * MIB  # partitions and file systems leave less than this unused
MOUNTED = ("ext4", "xfs")
LOCK = Path("/run/setup_and_train.volume.lock")


def mounted_at(mount: str) -> str:
    """The device that is mounted there; empty if none is."""
    found = disks.run(["findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", mount])
    return found.stdout.split("\n")[0].strip()


def mount_volume(args: argparse.Namespace, host: HostChanges) -> None:
    """Have the volume mounted. Raises ValueError or OSError if something must be changed."""
    if device := mounted_at(args.mount):
        check_is_wanted(device, args.volume)
        print(f"{device} is mounted at {args.mount}")
    elif source := fstab.source_of(args.mount):
        device = mount_known(source, args, host)
    else:
        device = mount_anew(args, host)
    if device and not host.dry_run:
        INTENT.unlink(missing_ok=True)  # what is mounted is whole
    if device:
        try:
            grow(device, args.mount, host)
        except ValueError as error:
            print(f"warning: {device} stays at its size: {error}")


def mount_known(source: str, args: argparse.Namespace, host: HostChanges) -> str:
    """Mount what fstab has for the mount point; returns the device. Raises ValueError."""
    deadline = time.monotonic() + args.wait_s
    while True:
        try:
            host.run("mount", args.mount)
            break
        except ValueError as error:
            if time.monotonic() >= deadline:
                raise ValueError(
                    f"{fstab.PATH} has {source} for {args.mount}, which cannot be mounted "
                    f"({error}): attach that volume, or remove the line to use another one"
                ) from error
        time.sleep(1)
    device = mounted_at(args.mount)
    if device:
        check_is_wanted(device, args.volume)
    return device


def check_is_wanted(device: str, wanted: str) -> None:
    """Raise ValueError if --volume names another device than the mounted one."""
    if not wanted:
        return
    listed = disks.read()
    path = os.path.realpath(wanted) if wanted.startswith("/") else ""
    for whole in listed:
        tree = list(whole.tree())
        if any(part.path == device for part in tree):
            if path in [part.path for part in tree] or whole.volume_id == wanted:
                return
            raise ValueError(f"--volume {wanted}: {whole} is mounted there already; give --mount")
    raise ValueError(f"--volume {wanted}: {device} is mounted there already; give another --mount")


def mount_anew(args: argparse.Namespace, host: HostChanges) -> str:
    """Choose, perhaps format, and mount a volume that is not in fstab; returns the device."""
    check_mount_point(Path(args.mount))
    disk = wait_for_volume(args.volume, 0 if host.dry_run else args.wait_s)
    print(f"the data volume is {disk}")
    device, found = what_to_mount(disk)
    if not found or interrupted_format(disk, found):
        if not args.format_if_blank:
            raise ValueError(
                f"{disk} has no file system. If it is new, and nothing on it is worth keeping, add "
                "--format_if_blank"
            )
        format_blank(disk, host)
        device, found = disk.path, {"TYPE": "ext4"}
    if disks.in_use(device):
        raise ValueError(f"{disk} is in use by the kernel or another program: it is left alone")
    return mount_for_good(device, found, args.mount, host)


def check_mount_point(mount: Path) -> None:
    """Raise ValueError if something is there that a mount would hide."""
    if mount.exists() and not mount.is_dir():
        raise ValueError(f"--mount {mount}: is a file; give a folder that is new or empty")
    if mount.is_dir() and any(mount.iterdir()):
        names = ", ".join(sorted(path.name for path in mount.iterdir())[:5])
        raise ValueError(
            f"--mount {mount}: holds files ({names}), which a volume mounted there would hide: "
            "move them away, or give another --mount"
        )


def wait_for_volume(wanted: str, wait_s: float) -> Disk:
    """The data volume, after waiting for one that is being attached."""
    deadline = time.monotonic() + wait_s
    while True:
        if Path("/run/udev").exists():
            disks.run(["udevadm", "settle"])
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
        systems = {path: has for path, has in parts.items() if has.get("TYPE") in MOUNTED}
        if len(systems) == 1:
            return next(iter(systems.items()))
        listed = ", ".join(f"{path}: {has.get('TYPE', 'nothing')}" for path, has in parts.items())
        raise ValueError(
            f"{disk} has a partition table ({listed or 'without partitions'}) but not exactly one "
            f"file system to mount: choose one with --volume DEVICE"
        )
    if found and found.get("TYPE") not in MOUNTED:
        raise ValueError(
            f"{disk} holds {found.get('TYPE', 'something unknown')}, not ext4 or xfs: it is left "
            "alone. Attach another volume, or mount it yourself and give --data_dir"
        )
    return disk.path, found


def identity(disk: Disk) -> dict[str, object]:
    """What identifies a volume across reboots."""
    return {"serial": disk.serial or disk.path, "size_bytes": disk.size_bytes}


def interrupted_format(disk: Disk, found: dict[str, str]) -> bool:
    """Whether a format that we began is unfinished there: never mounted, so never used."""
    if not INTENT.exists() or json.loads(INTENT.read_text()) != identity(disk):
        return False
    if not found:
        return True
    if found.get("TYPE") != "ext4" or found.get("LABEL") != LABEL:
        return False
    superblock = disks.run(["dumpe2fs", "-h", disk.path]).stdout
    return "Last mount time:          n/a" in superblock


def format_blank(disk: Disk, host: HostChanges) -> None:
    """Put ext4 on a volume without anything on it. Raises ValueError before anything is written."""
    if disk.kind not in disks.WHOLE:
        raise ValueError(f"{disk} is a {disk.kind}: only whole volumes are formatted")
    if disk.parts:
        raise ValueError(f"{disk} has parts ({', '.join(part.path for part in disk.parts)})")
    if disks.in_use(disk.path):
        raise ValueError(f"{disk} is in use by the kernel or another program: it is left alone")
    begun = INTENT.exists() and json.loads(INTENT.read_text()) == identity(disk)
    if not begun and (what := disks.not_blank(disk.path)):
        raise ValueError(f"{disk} is not blank ({what}): it is left alone")
    again = disks.choose(disks.read(), disk.path)  # looking took a while: is it still the same?
    if identity(again) != identity(disk) or again.parts:
        raise ValueError(f"{disk} is another device now: it is left alone")
    host.replace(INTENT, json.dumps(identity(disk)))
    # -F: we have looked more closely than mkfs does. -m 0: no room is reserved for root's daemons.
    host.run("mkfs.ext4", "-q", "-F", "-L", LABEL, "-m", "0", disk.path)


def mount_for_good(device: str, found: dict[str, str], mount: str, host: HostChanges) -> str:
    """Mount, now and through fstab at every boot; returns the device, "" in a dry run."""
    kind = found["TYPE"]
    uuid = found.get("UUID") or disks.contents(device).get("UUID", "")
    if host.dry_run:
        uuid = uuid or "that of the new file system"
    if not uuid:
        raise ValueError(f"{device}: its {kind} has no UUID to mount it by")
    twins = disks.run(["blkid", "-o", "device", "-t", f"UUID={uuid}"]).stdout.split()
    if others := sorted(set(twins) - {device}):
        raise ValueError(
            f"{', '.join(others)} has the same UUID as {device}, as copies of a snapshot have: "
            "detach it, or give one a new UUID (tune2fs -U random, xfs_admin -U generate)"
        )
    before = fstab.PATH.read_text() if fstab.PATH.exists() else ""
    host.run("mkdir", "-p", mount)
    fstab.add(f"UUID={uuid} {mount} {kind} {OPTIONS} 0 {2 if kind == 'ext4' else 0}", host)
    if Path("/run/systemd/system").exists():
        host.run("systemctl", "daemon-reload")
    try:
        host.run("mount", mount)
        if not host.dry_run and (there := mounted_at(mount)) != device:
            host.run("umount", mount)
            raise ValueError(f"{there} was mounted at {mount} instead of {device}")
    except ValueError:
        host.replace(fstab.PATH, before)
        raise
    return "" if host.dry_run else device


def grow(device: str, mount: str, host: HostChanges) -> None:
    """Let a file system fill a volume that was made larger; never shrinks it."""
    kind = disks.contents(device).get("TYPE", "")
    if kind not in MOUNTED:
        return
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


def give_to_caller(mount: Path, host: HostChanges) -> None:
    """Give the top folder of a volume, if it is root's, to the user who called sudo.

    Training does not run as root. Raises ValueError if the folder is somebody else's.
    """
    caller = os.environ.get("SUDO_UID", "")
    if not caller or host.dry_run or mount.stat().st_uid == int(caller):
        return
    if mount.stat().st_uid != 0:
        raise ValueError(
            f"{mount} belongs to user {mount.stat().st_uid}, not to you: sudo chown $USER {mount}"
        )
    host.run("chown", f"{caller}:{os.environ.get('SUDO_GID', caller)}", str(mount))


def main(argv: Sequence[str] | None = None) -> int:
    """Mount; 0 if the volume is mounted, 2 if something must be changed."""
    parser = Parser("host/volume.py", __doc__)
    add = parser.add_argument
    add("--mount", default="/mnt/imagenet", metavar="DIR", help="mount point [/mnt/imagenet]")
    add("--volume", default="", metavar="ID", help="vol-... or /dev/... [the only one possible]")
    add("--format_if_blank", action="store_true", help="put ext4 on a volume with nothing on it")
    add(
        "--wait_s",
        type=float,
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
        if not args.dry_run:
            lock = open(LOCK, "w")  # noqa: SIM115 (held to the end of the process)
            fcntl.lockf(lock, fcntl.LOCK_EX)  # one at a time, however many setups there are
        mount_volume(args, host)
        give_to_caller(Path(args.mount), host)
    except (ValueError, OSError, subprocess.SubprocessError) as error:
        return print_error("host/volume.py", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
