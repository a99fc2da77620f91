"""Read the packed data from instance store: a copy that is lost whenever the host stops.

    sudo python3 -m host.instance_store --source /mnt/imagenet/imagenet --link /mnt/imagenet/cached

Instance store is the local NVMe of some instances, faster than a volume and empty after every stop.
A blank one gets a file system and the packs; --link then points to the copy, or to the source if
there is no instance store, or too little of it. Checkpoints never go there. Run again, it copies
only what has changed. Standard library, Python 3.10. Exit codes: 0 the link is set, 2 change
something.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from host import commands, disks
from host.changes import HostChanges
from resnet50.config.command_line import Parser, print_error

MOUNT = Path("/mnt/instance_store")
DLAMI_MOUNT = Path("/opt/dlami/nvme")  # where Deep Learning AMIs mount theirs at boot
FOLDER = "setup_and_train.cache"  # in it; other folders there are the user's
FREE_BYTES = 1 << 30  # to keep free
SLOWEST = 5e6  # bytes/s; a volume that is slower, even one that comes from a snapshot, hangs


def store_folder(host: HostChanges) -> Path | None:
    """A folder on instance store; None if there is none to use. May mount or format it."""
    for mount in (MOUNT, DLAMI_MOUNT):
        if os.path.ismount(mount):
            return mount
    stores = [disk for disk in disks.read() if disk.model == disks.INSTANCE_STORE]
    unused = [disk for disk in stores if not any(part.mounts for part in disk.tree())]
    if not unused:
        print("no unused instance store here")
        return None
    disk = max(unused, key=lambda disk: disk.size_bytes)
    if disk.parts or disks.in_use(disk.path):
        print(f"{disk} is in use by something else: it is left alone")
        return None
    if disks.contents(disk.path).get("LABEL") != MOUNT.name:  # else ours, from before a reboot
        if what := disks.not_blank(disk.path):
            print(f"{disk} is not blank ({what}): it is left alone")
            return None
        host.run("mkfs.ext4", "-q", "-F", "-m", "0", "-L", MOUNT.name, disk.path)
    host.run("mkdir", "-p", str(MOUNT))
    host.run("mount", disk.path, str(MOUNT))
    return MOUNT


def copy(source: Path, target: Path, host: HostChanges) -> bool:
    """Copy what has changed; False if there is no room for it."""
    packs = [path for path in source.iterdir() if path.is_file()]
    stale = [path for path in packs if not is_same(path, target / path.name)]
    needed = sum(path.stat().st_size for path in stale)
    if needed and shutil.disk_usage(target.parents[1]).free < needed + FREE_BYTES:
        print(f"instance store has no room for the {needed / 1e9:.1f} GB of {source}")
        return False
    host.run("mkdir", "-p", str(target))
    for path in stale:
        partial = target / f"{path.name}.partial"
        limit_s = commands.CHANGE_S + path.stat().st_size / SLOWEST
        host.run("cp", "--preserve=timestamps", str(path), str(partial), limit_s=limit_s)
        host.run("mv", str(partial), str(target / path.name))
    print(f"{target} holds {len(packs)} files of {source}, {len(stale)} of them copied now")
    return True


def is_same(one: Path, other: Path) -> bool:
    """By size and time of change, as rsync decides; a copy is renamed only when it is whole."""
    if not other.is_file():
        return False
    first, second = one.stat(), other.stat()
    return (first.st_size, first.st_mtime_ns) == (second.st_size, second.st_mtime_ns)


def point(link: Path, target: Path, host: HostChanges) -> None:
    """Make a symbolic link point there, without a moment in which it is missing."""
    if link.is_symlink() and link.readlink() == target:
        return
    host.run("mkdir", "-p", str(link.parent))
    host.run("ln", "-sfn", str(target), f"{link}.new")
    host.run("mv", "-T", f"{link}.new", str(link))


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the cache if possible, and set the link."""
    parser = Parser("host/instance_store.py", __doc__)
    add = parser.add_argument
    add("--source", type=Path, required=True, metavar="DIR", help="packed data on the volume")
    add("--link", type=Path, required=True, metavar="PATH", help="what train.py gets as --data_dir")
    add("--dry_run", action="store_true", help="print what would be changed, change nothing")
    args = parser.parse_args(argv)
    if not args.source.is_dir():
        parser.error(f"--source {args.source}: no such folder")
    if args.link.exists() and not args.link.is_symlink():
        parser.error(f"--link {args.link}: exists already, and is not a link")
    host, target = HostChanges(args.dry_run), args.source.absolute()
    try:
        folder = store_folder(host)
        cached = folder and folder / FOLDER / target.name
        if cached and (args.dry_run or copy(target, cached, host)):
            target = cached
    except (ValueError, OSError) as error:
        print(f"warning: no copy on instance store ({error}): reading from the volume")
    try:
        point(args.link, target, host)
    except (ValueError, OSError) as error:
        return print_error("host/instance_store.py", f"--link {args.link}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
