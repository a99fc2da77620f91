"""/etc/fstab: what is mounted where at boot. Standard library, Python 3.10."""

import os
from pathlib import Path

from host import commands
from host.changes import HostChanges

PATH = Path("/etc/fstab")
SYSTEMD = Path("/run/systemd/system")  # is there where systemd runs


def read() -> str:
    """Its text; bytes that are not UTF-8 stay what they are (surrogateescape)."""
    return PATH.read_bytes().decode("utf-8", "surrogateescape") if PATH.exists() else ""


def lines() -> list[list[str]]:
    """The fields of every line that is not a comment."""
    fields = [line.split() for line in read().split("\n")]
    return [words for words in fields if len(words) > 1 and not words[0].startswith("#")]


def fields_for(mount: str) -> list[str]:
    """The fields of the line for a mount point; empty without one."""
    return next((words for words in lines() if words[1].rstrip("/") == mount), [])


def mount_point_of(device: str, uuid: str) -> str:
    """Where fstab has a device, by whatever name; empty if nowhere."""
    names = (device, f"UUID={uuid}", f'UUID="{uuid}"')
    for name, place, *_ in lines():
        meant = map(os.path.realpath, devices_of(name)) if place.startswith("/") else ()
        if place.startswith("/") and (name in names or os.path.realpath(device) in meant):
            return place
    return ""


def devices_of(source: str) -> list[str]:
    """The attached devices that a line's first field means; itself, if it means no device."""
    if source.startswith("/dev/"):
        return [os.path.realpath(source)] if Path(source).exists() else []
    if source.partition("=")[0] in ("UUID", "LABEL", "PARTUUID", "PARTLABEL"):
        tag = source.replace('"', "")
        return commands.run(["blkid", "-o", "device", "-t", tag]).stdout.split()
    return [source]


def add(line: str, host: HostChanges) -> None:
    """Add a line; the file as it was before the first one is kept beside it.

    Raises ValueError if it cannot be written.
    """
    before = read()
    text = before + ("" if before.endswith("\n") or not before else "\n") + line + "\n"
    print(f"+ add to {PATH}: {line}", flush=True)
    if host.dry_run:
        return
    kept = PATH.with_name("fstab.before_setup_and_train")
    try:
        if before and not kept.exists():
            host.replace(kept, before)
        replace(text, host)
    except OSError as error:
        raise ValueError(
            f"{PATH} cannot be written ({error.strerror}), and needs this line: {line}"
        ) from error


def remove(line: str, host: HostChanges) -> None:
    """Take back a line that `add` added, if it did; nothing else that has changed since."""
    before = read().split("\n")
    if line in before:
        replace("\n".join(other for other in before if other != line), host)


def replace(text: str, host: HostChanges) -> None:
    """Replace its text, behind a link too, and tell systemd."""
    host.replace(PATH.resolve(), text)
    tell_systemd(host)


def tell_systemd(host: HostChanges) -> None:
    """Have systemd read fstab again: it unmounts at once what belongs to an outdated line."""
    if not SYSTEMD.exists():
        return
    try:
        host.run("systemctl", "daemon-reload")
    except ValueError as error:
        print(f"warning: systemd may unmount the volume until it has read {PATH}: {error}")
