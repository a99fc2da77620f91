"""What is mounted at a mount point, whether a run may live there, and whether the next boot has it.

    if there := mounts.at("/mnt/imagenet"):
        mounts.check(there, "/mnt/imagenet", wanted="vol-0123456789abcdef0")

Runs before there is an environment: standard library, Python 3.10.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from host import commands, disks, fstab
from host.changes import HostChanges
from host.disks import Disk

KINDS = ("ext4", "xfs")  # the file systems that we mount
# nofail: a host without its volume boots. No check at boot (the last field, 0): where one fails,
# systemd before 250 ends in an emergency shell in spite of nofail, and EC2 has no console for it.
OPTIONS, NO_CHECK = "defaults,nofail,x-systemd.device-timeout=30s", "0 0"
IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
LAYERED = ("overlay", "aufs")  # a container's own file system, gone when the container is
ANSWER_S = 30.0


@dataclass(frozen=True)
class Mounted:
    """A line of findmnt."""

    device: str  # without the folder of a bind mount, which is `folder`
    folder: str
    kind: str
    options: tuple[str, ...]

    def is_volume(self) -> bool:
        """Whether it is, or is a folder of, a file system that we would mount: not the root's."""
        if self.kind not in KINDS or not self.device.startswith("/dev/"):
            return False
        root = at("/")
        return root is None or root.device != self.device


def at(mount: str) -> Mounted | None:
    """What is mounted there, the uppermost if there are several; None if nothing is."""
    there = _look(mount)
    if there and there.kind == "autofs":  # mounted when somebody looks inside
        commands.run(["ls", mount])
        there = _look(mount)
    return None if there and there.kind == "autofs" else there


def _look(mount: str) -> Mounted | None:
    columns = "SOURCE,FSROOT,FSTYPE,OPTIONS"
    found = commands.run(
        ["findmnt", "--json", "--list", "--nofsroot", "--output", columns, "--mountpoint", mount]
    )
    if found.returncode:
        return None
    try:
        last = json.loads(found.stdout)["filesystems"][-1]
        options = tuple((last["options"] or "").split(","))
        return Mounted(last["source"] or "", last["fsroot"] or "/", last["fstype"] or "", options)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"findmnt says nothing that can be understood of {mount} ({error!r})"
        ) from error


def check(there: Mounted, mount: str, wanted: str) -> None:
    """Raise ValueError if a run cannot live there, or --volume names something else."""
    listed = disks.read() if there.device.startswith("/dev/") else []
    if what := emptied_by_a_stop(there, mount, listed):
        raise ValueError(
            f"--mount {mount}: what is mounted there ({there.device}, {there.kind}) is {what}: a "
            "stop of the host empties it, checkpoints included. Unmount it, or give another "
            "--mount for the volume; --data_dir reads data that is there, with the run elsewhere"
        )
    if wanted:
        _check_is_wanted(there.device, wanted, listed)
    if "ro" in there.options:
        raise ValueError(
            f"--mount {mount}: {there.device} is mounted read-only: sudo mount -o remount,rw "
            f"{mount}. If that fails, sudo dmesg says why; a damaged one needs fsck, unmounted"
        )
    if "noexec" in there.options:
        print(
            f"warning: {mount} is mounted noexec: PyTorch cannot run from there. "
            f"sudo mount -o remount,exec {mount}, or another folder for it: VENV=DIR"
        )
    # A server or disk that is gone would hold every later step for ever.
    commands.run(["stat", "--file-system", mount], ANSWER_S)


def emptied_by_a_stop(there: Mounted, mount: str, listed: Sequence[Disk]) -> str:
    """What it is, if the files there are lost when the host stops; empty if they stay."""
    if there.kind in IN_MEMORY or re.match(r"/dev/z?ram\d", there.device):
        return "in memory"
    if there.kind in LAYERED:
        return "a container's own layer"
    for disk in listed:
        parts = [part for part in disk.tree() if part.path == there.device or mount in part.mounts]
        if parts and disk.model in disks.EPHEMERAL:
            return "instance store"
    return ""


def lost_with_a_stop(folder: Path) -> str:
    """Where the folder is, if a stop of the host may empty that; empty if its files stay."""
    mount = str(next(place for place in (folder, *folder.parents) if place.is_mount()))
    there = at(mount)
    if there is None:
        return ""
    listed = disks.read() if there.device.startswith("/dev/") else []
    what = emptied_by_a_stop(there, mount, listed)
    return f"{mount} ({there.kind}), which is {what}" if what else ""


def _check_is_wanted(device: str, wanted: str, listed: Sequence[Disk]) -> None:
    """Raise ValueError if --volume names another device than the mounted one."""
    path = os.path.realpath(wanted) if wanted.startswith("/") else ""
    name = device
    for whole in listed:
        tree = list(whole.tree())
        if any(part.path == device for part in tree):
            if path in [part.path for part in tree] or whole.volume_id == wanted:
                return
            name = str(whole)
    raise ValueError(f"--volume {wanted}: {name} is mounted there already; give another --mount")


def fstab_line(device: str, kind: str, uuid: str, mount: str) -> str:
    """What mounts it at every boot. Raises ValueError if there is no telling it from another."""
    if not uuid:
        raise ValueError(f"{device}: its {kind} has no UUID to mount it by")
    if place := fstab.mount_point_of(device, uuid):
        raise ValueError(f"{fstab.PATH} has {device} for {place}: use it there, --mount {place}")
    if others := sorted(set(fstab.devices_of(f"UUID={uuid}")) - {device}):
        raise ValueError(
            f"{', '.join(others)} has the same UUID as {device}, as copies of a snapshot have: "
            "detach it, or give one a new UUID (tune2fs -U random, xfs_admin -U generate)"
        )
    return f"UUID={uuid} {mount} {kind} {OPTIONS} {NO_CHECK}"


def keep_for_boot(there: Mounted, mount: str, host: HostChanges) -> None:
    """Have what is mounted there at the next boot too, or say that it will not be."""
    next_boot = f"warning: the next boot will not mount {there.device} at {mount}:"
    if fields := fstab.fields_for(mount):
        options = ",".join(fields[3:4]).split(",")
        if "noauto" in options and "x-systemd.automount" not in options:
            print(f"{next_boot} its line in {fstab.PATH} says noauto")
        elif there.is_volume() and not {"bind", "rbind"} & set(options):
            meant = map(os.path.realpath, fstab.devices_of(fields[0]))
            if os.path.realpath(there.device) not in meant:
                print(f"{next_boot} {fstab.PATH} has {fields[0]} for it")
        return
    if not there.is_volume() or there.folder != "/":
        print(f"{next_boot} {fstab.PATH} has no line for it")
        return
    try:
        uuid = disks.contents(there.device).get("UUID", "")
        fstab.add(fstab_line(there.device, there.kind, uuid, mount), host)
    except (ValueError, OSError) as error:
        print(f"{next_boot} {error}")
    else:
        # What a boot does not set up by itself: an image file; an encrypted disk, without crypttab.
        below = ["lsblk", "--noheadings", "--inverse", "--list", "--output", "TYPE", there.device]
        needs = {"loop", "crypt"} & set(commands.run(below).stdout.split())
        how = f"a boot mounts it if something sets up {there.device} first"
        print(f"it was mounted by hand; with this line, {how if needs else 'every boot mounts it'}")
