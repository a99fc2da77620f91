"""host/volume.py on real block devices: image files behind loop devices, in a mount namespace.

/etc and /var/lib are copies there, so that this machine's fstab is never written.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import host_words
from support.devices import MIB, MOUNT, Host, blank, digest, make_node, tool
from support.needs import needs, needs_root

from host import commands, disks

pytestmark = needs_root


@pytest.fixture
def host(tmp_path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def write_at(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def only_a_backup_superblock(image: Path) -> None:
    """ext4 whose first MiB is gone: only its copies of the superblock can bring the files back."""
    tool("mkfs.ext4", "-q", "-b", "1024", str(image))
    write_at(image, 0, bytes(MIB))


def logical_volumes(image: Path) -> None:
    """LVM's label, as pvcreate leaves it in the second sector (lvm2, lib/label/label.h)."""
    write_at(image, 512, b"LABELONE" + (1).to_bytes(8, "little") + bytes(4) + b"\x20\0\0\0LVM2 001")


def raid(image: Path) -> None:
    """md's superblock, version 1.2, at 4 KiB (linux/raid/md_p.h): magic, version, its place."""
    head = (0xA92B4EFC).to_bytes(4, "little") + (1).to_bytes(4, "little")
    write_at(image, 4096, head + bytes(136) + (8).to_bytes(8, "little"))


def luks(image: Path) -> None:
    options = ["--batch-mode", "--type=luks1", "--pbkdf-force-iterations=1000"]
    tool("cryptsetup", "luksFormat", *options, str(image), input="secret")


def table(kind: str):
    return lambda image: tool("sfdisk", str(image), input=f"label: {kind}\n,16M\n,16M\n")


OCCUPIED = {
    "gpt": (table("gpt"), "partition table"),
    "mbr": (table("dos"), "partition table"),
    "lvm": (logical_volumes, "LVM2_member"),
    "swap": (lambda image: tool("mkswap", str(image)), "swap"),
    "luks": (luks, "crypto_LUKS"),
    "raid": (raid, ""),
    "backup superblock": (only_a_backup_superblock, "not blank"),
    "random data": (lambda image: write_at(image, 0, os.urandom(64 * MIB)), ""),
    "one byte": (lambda image: write_at(image, 50 * MIB + 7, b"x"), "at byte 52,428,800"),
    "last byte": (lambda image: write_at(image, 64 * MIB - 1, b"x"), "not blank"),
}


@needs_root
@pytest.mark.parametrize("kind", OCCUPIED)
def test_nothing_is_written_to_a_volume_that_holds_something(host, tmp_path, kind):
    fill, text = OCCUPIED[kind]
    image = blank(tmp_path / "image")
    fill(image)
    before = digest(image)
    loop = host.attach(image)
    for flags in ([], ["--format_if_blank"]):
        result = host.volume(loop, *flags)
        assert result.returncode == 2 and "error: " in result.stderr, result.stdout
        assert "+ mkfs" not in result.stdout
        if flags:
            assert text in result.stderr
    assert digest(image) == before and not host.fstab()


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_file_system_is_mounted_and_never_formatted(host, tmp_path, kind):
    image = blank(tmp_path / "image", 320 * MIB)
    tool(f"mkfs.{kind}", "-q", str(image))
    loop, before = host.attach(image), digest(image)
    dry = host.volume(loop, "--format_if_blank", "--dry_run")
    assert dry.returncode == 0 and f"mount {MOUNT}" in dry.stdout, dry.stderr
    assert digest(image) == before and not host.fstab()

    for _ in range(2):
        result = host.volume(loop, "--format_if_blank")
        assert result.returncode == 0, result.stderr
        assert "mkfs" not in result.stdout
    uuid = host.call("blkid", "-p", "-s", "UUID", "-o", "value", loop).stdout.strip()
    assert [line.split()[:3] for line in host.fstab()] == [[f"UUID={uuid}", MOUNT, kind]]
    assert "nofail" in host.fstab()[0]
    assert host.call("findmnt", "--verify").returncode == 0


def test_a_blank_volume_is_formatted_only_when_told(host, tmp_path):
    image = blank(tmp_path / "image")
    loop, before = host.attach(image), digest(image)
    refused = host.volume(loop)
    assert refused.returncode == 2 and "--format_if_blank" in refused.stderr
    assert digest(image) == before
    assert host.volume(loop, "--format_if_blank", "--dry_run").returncode == 0
    assert digest(image) == before

    result = host.volume(loop, "--format_if_blank")
    assert result.returncode == 0, result.stderr
    assert host.call("findmnt", "-no", "FSTYPE", MOUNT).stdout.strip() == "ext4"
    host.call("sh", "-c", f"echo kept > {MOUNT}/file")
    again = host.volume(loop, "--format_if_blank")
    assert again.returncode == 0 and "is mounted at" in again.stdout and "+ " not in again.stdout
    assert host.call("cat", f"{MOUNT}/file").stdout == "kept\n"
    assert len(host.fstab()) == 1


def test_after_a_reboot_fstab_is_enough(host, tmp_path):
    loop = host.attach(blank(tmp_path / "image"))
    assert host.volume(loop, "--format_if_blank").returncode == 0
    host.call("umount", MOUNT)
    result = host.call(*host_words("volume", f"--mount={MOUNT}"))
    assert result.returncode == 0, result.stderr
    assert host.call("mountpoint", "-q", MOUNT).returncode == 0 and len(host.fstab()) == 1


def test_a_mounted_and_a_busy_volume_are_left_alone(host, tmp_path):
    image = blank(tmp_path / "image")
    tool("mkfs.ext4", "-q", str(image))
    loop = host.attach(image)
    host.call("mkdir", "/mnt/elsewhere")
    host.call("mount", "-o", "ro,noload", loop, "/mnt/elsewhere")
    before = digest(image)
    result = host.volume(loop, "--format_if_blank")
    assert result.returncode == 2 and "is mounted at /mnt/elsewhere" in result.stderr

    busy = blank(tmp_path / "busy")
    other = host.attach(busy)
    holder = os.open(other, os.O_RDONLY | os.O_EXCL)  # as LVM, RAID and other programs do
    result = host.volume(other, "--format_if_blank")
    os.close(holder)
    assert result.returncode == 2 and "is in use" in result.stderr
    assert digest(image) == before and digest(busy) == digest(blank(tmp_path / "zeros"))


def can_resize_ext4() -> bool:
    """Growing a mounted ext4 needs CAP_SYS_RESOURCE, which a container's root may lack."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "CapEff" in x)
    return bool(int(line.split()[1], 16) >> 24 & 1)


def size_there(host: Host) -> int:
    return int(host.call("findmnt", "-bno", "SIZE", MOUNT).stdout)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_file_system_grows_with_its_volume(host, tmp_path, kind):
    image = blank(tmp_path / "image", 320 * MIB)
    tool(f"mkfs.{kind}", "-q", str(image))
    loop = host.attach(image)
    assert host.volume(loop).returncode == 0
    small = size_there(host)
    os.truncate(image, 640 * MIB)
    tool("losetup", "--set-capacity", loop)
    grown = host.volume(loop)
    assert grown.returncode == 0, grown.stderr
    if kind == "ext4" and not can_resize_ext4():
        assert "+ resize2fs" in grown.stdout and "warning: " in grown.stdout
        return
    assert size_there(host) > 1.8 * small
    assert "+ " not in host.volume(loop).stdout


@needs("growpart", "xfs_growfs")
def test_a_partition_grows_too(host, tmp_path):
    image = blank(tmp_path / "image", 400 * MIB)
    tool("sfdisk", str(image), input="label: gpt\n,350M\n")
    loop = host.attach(image)
    tool("partx", "--add", loop)
    partition = make_node(f"{loop}p1")
    tool("mkfs.xfs", "-q", partition)
    (whole,) = (disk for disk in disks.read() if disk.path == loop)
    assert [part.path for part in whole.parts] == [partition]
    assert host.volume(loop).returncode == 0
    small = size_there(host)
    os.truncate(image, 800 * MIB)
    tool("losetup", "--set-capacity", loop)
    grown = host.volume(partition)
    assert grown.returncode == 0, grown.stderr
    assert "growpart" in grown.stdout and "xfs_growfs" in grown.stdout
    assert size_there(host) > 1.8 * small


def test_a_format_that_failed_is_never_a_reason_to_format(host, tmp_path):
    """mkfs.ext4 as a stand-in that writes some of it and dies; and then a disk with raw data."""
    image = blank(tmp_path / "image")
    loop = host.attach(image)
    stand_in = tmp_path / "bin"
    stand_in.mkdir()
    (stand_in / "mkfs.ext4").write_text(
        f"#!/bin/sh\nprintf half | dd of={loop} bs=1 seek=30000000 conv=notrunc\nexit 1\n"
    )
    (stand_in / "mkfs.ext4").chmod(0o755)
    path = os.environ["PATH"]
    failed = host.call(
        *host_words("volume", f"--mount={MOUNT}", f"--volume={loop}", "--format_if_blank"),
        env=os.environ | {"PATH": f"{stand_in}:{path}"},
    )
    assert failed.returncode == 2 and "mkfs.ext4" in failed.stderr
    write_at(image, 40 * MIB, b"raw data")
    before = digest(image)
    result = host.volume(loop, "--format_if_blank")
    assert result.returncode == 2 and f"sudo mkfs.ext4 {loop}, and come" in result.stderr
    assert digest(image) == before
    host.call("mkfs.ext4", "-q", loop)
    assert host.volume(loop).returncode == 0


def test_a_format_outlives_a_setup_that_is_killed(host, tmp_path):
    """With all of its process group, as Ctrl-C and a closed terminal end it."""
    loop = host.attach(blank(tmp_path / "image"))
    mkfs = tmp_path / "bin" / "mkfs.ext4"
    mkfs.parent.mkdir()
    really = shutil.which("mkfs.ext4", path=commands.SYSTEM_FOLDERS)
    mkfs.write_text(f'#!/bin/sh\ntouch {tmp_path}/begun; sleep 1; exec {really} "$@"\n')
    mkfs.chmod(0o755)
    words = host_words("volume", f"--mount={MOUNT}", f"--volume={loop}", "--format_if_blank")
    process = subprocess.Popen(
        ["nsenter", "--mount", f"--target={host.process.pid}", *words],
        env=os.environ | {"PATH": f"{mkfs.parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while disks.contents(loop).get("TYPE") != "ext4" or disks.in_use(loop):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    result = host.volume(loop)
    assert result.returncode == 0 and "mkfs" not in result.stdout, result.stderr


def test_a_mount_point_in_use_is_left_alone(host, tmp_path):
    loop = host.attach(blank(tmp_path / "image"))
    host.call("mkdir", MOUNT)
    host.call("touch", f"{MOUNT}/mine")
    result = host.volume(loop, "--format_if_blank")
    assert result.returncode == 2 and "holds files (mine)" in result.stderr
    host.call("rm", f"{MOUNT}/mine")
    assert host.volume(loop, "--format_if_blank").returncode == 0
    other = host.attach(blank(tmp_path / "other"))
    result = host.volume(other, "--format_if_blank")
    assert result.returncode == 2 and "is mounted there already" in result.stderr


def test_root_is_refused(host):
    device = subprocess.run(
        ["findmnt", "-no", "SOURCE", "/"], capture_output=True, text=True
    ).stdout.strip()
    result = host.volume(device, "--format_if_blank")
    assert result.returncode == 2
    assert "holds the root file system" in result.stderr or "no such volume" in result.stderr


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--mount=/"], "--mount /: give an absolute path"),
        (["--mount=here"], "--mount here: give an absolute path"),
        (["--wait_s=nan"], "--wait_s: nan: give a number of seconds"),
        (["--wait_s=inf"], "--wait_s: inf: give a number of seconds"),
        (["--volume=vol-0123"], "--volume vol-0123: no such volume is attached"),
    ],
)
def test_mistakes_end_with_2(host, flags, text):
    result = host.call(*host_words("volume", *flags))
    assert result.returncode == 2 and text in result.stderr
