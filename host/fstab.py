"""/etc/fstab: what is mounted where at boot. Standard library, Python 3.10."""

from pathlib import Path

from host.changes import HostChanges

PATH = Path("/etc/fstab")


def source_of(mount: str) -> str:
    """First field of fstab's line for a mount point; empty without one."""
    for line in PATH.read_text().splitlines() if PATH.exists() else []:
        fields = line.split()
        if len(fields) > 1 and not line.startswith("#") and fields[1].rstrip("/") == mount:
            return fields[0]
    return ""


def add(line: str, host: HostChanges) -> None:
    """Add a line to fstab; the file as it was before the first one is kept beside it."""
    before = PATH.read_text() if PATH.exists() else ""
    text = before + ("" if before.endswith("\n") or not before else "\n") + line + "\n"
    print(f"+ add to {PATH}: {line}", flush=True)
    if host.dry_run:
        return
    kept = PATH.with_name("fstab.before_setup_and_train")
    if before and not kept.exists():
        host.replace(kept, before)
    host.replace(PATH, text)
