"""host/instance_store.py: loop devices in the place of an instance's own NVMe."""

import os
import shutil
from pathlib import Path

import pytest
from support.devices import MIB, Host, blank
from support.needs import needs_root

from host import disks, instance_store

pytestmark = needs_root
COPY = f"{instance_store.MOUNT}/{instance_store.FOLDER}/imagenet"


@pytest.fixture
def packed(tmp_path) -> Path:
    folder = tmp_path / "imagenet"
    folder.mkdir()
    for name, size in (("train.pack", 5 * MIB), ("val.pack", MIB)):
        (folder / name).write_bytes(os.urandom(size))
    return folder


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path / "host")
    yield host
    host.close()


def call(host: Host, packed: Path, *flags: str, store: str = ""):
    """Run it in the host's namespace; a loop device has no model, so one is given to it."""
    words = [f"--source={packed}", f"--link={packed.parent}/cached/link", *flags]
    return host.program("instance_store_on", store, *words)


def link_of(packed: Path) -> str:
    return str((packed.parent / "cached" / "link").readlink())


def test_without_instance_store_the_link_points_to_the_volume(host, packed):
    result = call(host, packed)
    assert result.returncode == 0 and "no unused instance store" in result.stdout, result.stderr
    assert link_of(packed) == str(packed)


def test_a_blank_store_gets_a_copy_that_is_made_once(host, packed, tmp_path):
    loop = host.attach(blank(tmp_path / "store", 512 * MIB))
    assert call(host, packed, "--dry_run", store=loop).returncode == 0
    assert not disks.contents(loop) and not (tmp_path / "cached").exists()
    result = call(host, packed, store=loop)
    assert result.returncode == 0 and "2 of them copied now" in result.stdout, result.stderr
    assert link_of(packed) == COPY
    for name in ("train.pack", "val.pack"):
        copy = host.call("sha256sum", f"{COPY}/{name}").stdout.split()[0]
        assert copy == host.call("sha256sum", str(packed / name)).stdout.split()[0]
    assert "0 of them copied now" in call(host, packed, store=loop).stdout

    (packed / "val.pack").write_bytes(b"packed anew")
    assert "1 of them copied now" in call(host, packed, store=loop).stdout
    host.call("umount", str(instance_store.MOUNT))  # a reboot: the files are there still
    again = call(host, packed, store=loop)
    assert "0 of them copied now" in again.stdout and "mkfs" not in again.stdout
    assert not host.fstab()  # what is empty after a stop is not mounted at boot


def test_a_store_that_holds_something_else_is_left_alone(host, packed, tmp_path):
    image = blank(tmp_path / "store")
    with open(image, "r+b") as file:
        file.seek(20 * MIB)
        file.write(b"mine")
    before = image.read_bytes()
    result = call(host, packed, store=host.attach(image))
    assert result.returncode == 0 and "is not blank" in result.stdout, result.stderr
    assert link_of(packed) == str(packed) and image.read_bytes() == before


def test_too_small_a_store_is_not_used(host, packed, tmp_path):
    result = call(host, packed, store=host.attach(blank(tmp_path / "store")))
    assert result.returncode == 0 and "no room" in result.stdout, result.stderr
    assert link_of(packed) == str(packed)


def test_a_copy_that_was_lost_is_made_again(host, packed, tmp_path):
    """After a stop the store is another, blank one, and the link points nowhere."""
    first = host.attach(blank(tmp_path / "store", 512 * MIB))
    assert call(host, packed, store=first).returncode == 0
    host.call("umount", str(instance_store.MOUNT))
    second = host.attach(blank(tmp_path / "other", 512 * MIB))
    result = call(host, packed, store=second)
    assert result.returncode == 0 and "2 of them copied now" in result.stdout, result.stderr
    assert link_of(packed) == COPY


def test_a_folder_of_the_users_is_not_copied_into(host, packed):
    """On what a Deep Learning AMI, or somebody, has mounted."""
    mine = f"{instance_store.MOUNT}/imagenet"
    host.call("mkdir", str(instance_store.MOUNT))
    host.call("mount", "-t", "tmpfs", "none", str(instance_store.MOUNT))
    host.call("mkdir", mine)
    host.call("sh", "-c", f"echo mine >{mine}/train.pack")
    result = call(host, packed)
    assert result.returncode == 0 and link_of(packed) == COPY, result.stderr
    assert host.call("cat", f"{mine}/train.pack").stdout == "mine\n"
    assert host.call("ls", mine).stdout == "train.pack\n"


def test_mistakes_end_with_2(host, packed):
    shutil.copytree(packed, packed.parent / "cached" / "link")
    result = call(host, packed)
    assert result.returncode == 2 and "exists already" in result.stderr
