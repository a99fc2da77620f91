"""Whose a volume's top folder is. Training does not run as root, so its user must write there.

Runs before there is an environment: standard library, Python 3.10.
"""

import os
import re
from pathlib import Path

from host import commands
from host.changes import HostChanges

# What setup_and_train.sh puts onto a volume. Anything else is the user's, perhaps a whole system.
OURS = {
    *("lost+found", "runs", "resnet50", "cached", ".cache", "ResNet50_ImageNet1K_Training"),
    *("imagenet", "tiny-imagenet", "mini-imagenet", "imagenette", "fashion-mnist"),
}


def give_to_caller(folder: Path, host: HostChanges) -> None:
    """Give a volume that is root's, and holds nothing but ours, to the user who called sudo.

    Raises ValueError if the user cannot write there otherwise.
    """
    uid, user = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_USER", "$USER")
    if not uid or host.dry_run or folder.stat().st_uid == int(uid):
        return
    group = os.environ.get("SUDO_GID", uid)
    others = sorted(path.name for path in folder.iterdir() if not is_ours(path.name))
    if folder.stat().st_uid == 0 and not others:
        host.run("chown", f"{uid}:{group}", str(folder))
        return
    groups = os.getgrouplist(user, int(group))
    who = {"user": int(uid), "group": int(group), "extra_groups": groups}
    if commands.run(["test", "-w", str(folder)], **who).returncode == 0:
        return
    holds = f" and holds {', '.join(others[:5])}, which is not ours" if others else ""
    raise ValueError(
        f"{folder} belongs to user {folder.stat().st_uid}{holds}: its owner is left as it is, and "
        f"you cannot write there. If it is meant for training: sudo chown {user} {folder}"
    )


def is_ours(name: str) -> bool:
    """Whether setup_and_train.sh made it; an unfinished or a replaced one is ours, too."""
    return re.sub(r"\.(partial(\.\w+)?|old-\d+)$", "", name) in OURS
