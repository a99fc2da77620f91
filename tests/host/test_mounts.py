"""host/volume.py where something is mounted, in fstab, or in the way already.

As in test_volume.py: loop devices in a mount namespace, with its own /etc and /var/lib.
"""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import REPOSITORY, host_words
from support.devices import MIB, MOUNT, Host, blank, digest, make_node, tool
from support.needs import needs_root

from host import disks, fstab, owner

pytestmark = needs_root


def formatted(folder: Path, name: str = "image", **files: str) -> Path:
    """An image with ext4 on it, and files: etc__passwd is passwd in the folder etc."""
    image, tree = blank(folder / name), folder / f"{name}.files"
    tree.mkdir()
    for path, text in files.items():
        path = tree / path.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    tool("mkfs.ext4", "-q", "-d", str(tree), str(image))
    return image


@pytest.fixture
def stand_in(tmp_path):
    """Puts a script of this name before all others on the PATH of `volume`."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(name: str, script: str) -> dict[str, str]:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}

    return make


def volume(host: Host, *flags: str, **more: object) -> subprocess.CompletedProcess:
    return host.call(*host_words("volume", f"--mount={MOUNT}", *flags), **more)


@pytest.fixture
def host(tmp_path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def is_mounted(host: Host) -> bool:
    return host.call("mountpoint", "-q", MOUNT).returncode == 0


def write_fstab(host: Host, *lines: str) -> None:
    text = "".join(f"{line}\n" for line in ("# fstab of this test", *lines))
    (host.folder / "etc" / "fstab").write_text(text)


UUID = "11111111-2222-3333-4444-555555555555"
OUR_LINE = f"UUID={UUID} {MOUNT} ext4 defaults,nofail,x-systemd.device-timeout=30s 0 2"
AS_A_USER = os.environ | {"SUDO_UID": "1000", "SUDO_GID": "1000", "SUDO_USER": "someone"}


MOUNT_REALLY = "$(PATH=/usr/bin:/bin command -v mount)"
LOOK_REALLY = f'case $* in *noload*) exec {MOUNT_REALLY} "$@" ;; esac'  # what it does before


@pytest.mark.parametrize("flags", [[], ["--volume=LOOP", "--format_if_blank"], ["--dry_run"]])
def test_a_volume_of_fstab_that_is_not_attached_is_named(host, tmp_path, flags):
    """mount(8) ends well without it, because of nofail."""
    loop = host.attach(blank(tmp_path / "image"))
    write_fstab(host, OUR_LINE)
    host.call("mkdir", MOUNT)
    result = volume(host, *(flag.replace("LOOP", loop) for flag in flags), env=AS_A_USER)
    assert result.returncode == 2 and not is_mounted(host)
    for text in (f"/etc/fstab has UUID={UUID}", "is not attached", "remove the line", "--wait_s"):
        assert text in result.stderr
    assert "comes before --volume" in result.stderr and "chown" not in result.stdout
    assert host.fstab() == [OUR_LINE]


def test_a_volume_of_fstab_is_waited_for(host, tmp_path):
    image = blank(tmp_path / "image")
    tool("mkfs.ext4", "-q", "-U", UUID, str(image))
    write_fstab(host, OUR_LINE)
    timer = threading.Timer(2, lambda: host.attach(image))
    timer.start()
    result = volume(host, "--wait_s=60")
    timer.join()
    assert result.returncode == 0 and is_mounted(host), result.stderr


def test_the_copy_of_a_volume_of_fstab_is_not_taken_for_it(host, tmp_path):
    image = formatted(tmp_path)
    (tmp_path / "copy").write_bytes(image.read_bytes())
    loops = [host.attach(image), host.attach(tmp_path / "copy")]
    fresh = host.volume(loops[0])
    assert fresh.returncode == 2 and "has the same UUID" in fresh.stderr and not host.fstab()
    uuid = disks.contents(loops[0])["UUID"]
    write_fstab(host, OUR_LINE.replace(UUID, uuid))
    known = volume(host)
    assert known.returncode == 2 and "detach all but one" in known.stderr and not is_mounted(host)


@pytest.mark.parametrize("name", ["UUID", "LABEL", "link"])
def test_a_volume_that_fstab_has_for_another_place_is_used_there(host, tmp_path, name):
    image, label = formatted(tmp_path), f"test-{os.getpid()}"
    tool("tune2fs", "-L", label, str(image))
    loop = host.attach(image)
    link = f"/dev/shm/{label}"  # as udev's in /dev/disk
    host.call("mount", "-t", "tmpfs", "none", "/dev/shm")
    host.call("ln", "-s", loop, link)
    uuid = disks.contents(loop)["UUID"]
    names = {"UUID": f"UUID={uuid}", "LABEL": f"LABEL={label}", "link": link}
    line = f"{names[name]} /mnt/data ext4 defaults 0 0"
    write_fstab(host, line)
    result = host.volume(loop)
    assert result.returncode == 2 and "use it there, --mount /mnt/data" in result.stderr
    assert host.fstab() == [line] and not is_mounted(host)


def test_what_was_mounted_by_hand_is_kept_for_the_next_boot(host, tmp_path):
    loop = host.attach(formatted(tmp_path))
    host.call("mkdir", MOUNT)
    host.call("mount", loop, MOUNT)
    for _ in range(2):
        result = volume(host)
        assert result.returncode == 0 and f"{loop} is mounted at" in result.stdout, result.stderr
        assert "every boot mounts it" not in result.stdout  # nothing attaches the image then
        assert [line.split()[1:] for line in host.fstab()] == [
            [MOUNT, "ext4", "defaults,nofail,x-systemd.device-timeout=30s", "0", "0"]
        ]
    assert "+ " not in result.stdout
    host.call("umount", MOUNT)
    assert host.call("mount", MOUNT).returncode == 0 and is_mounted(host)


@pytest.mark.parametrize(
    "line, text",
    [
        (OUR_LINE, f"/etc/fstab has UUID={UUID} for it"),
        (f"/dev/loop99 {MOUNT} ext4 noauto 0 0", "says noauto"),
        ("", "cannot be written (Read-only file system)"),
    ],
)
def test_what_the_next_boot_will_not_mount_is_said(host, tmp_path, line, text):
    loop = host.attach(formatted(tmp_path))
    write_fstab(host, *filter(None, [line]))
    host.call("mkdir", MOUNT)
    host.call("mount", loop, MOUNT)
    if not line:
        host.call("mount", "-o", "remount,bind,ro", "/etc")
    result = volume(host)
    assert result.returncode == 0, result.stderr
    assert f"the next boot will not mount {loop}" in result.stdout and text in result.stdout


def test_a_folder_of_the_volume_may_be_mounted_there(host, tmp_path):
    loop = host.attach(formatted(tmp_path, imagenet__train="pictures"))
    host.call("mkdir", "/mnt/whole", MOUNT)
    host.call("mount", loop, "/mnt/whole")
    host.call("mount", "--bind", "/mnt/whole/imagenet", MOUNT)
    result = host.volume(loop)
    assert result.returncode == 0 and f"{loop} is mounted at" in result.stdout, result.stderr
    assert "the next boot will not" in result.stdout and not host.fstab()


STORE = f"""lsblk=$(PATH=/usr/bin:/bin command -v lsblk)
$lsblk "$@" | sed 's/"model": *null/"model": "{disks.INSTANCE_STORE}"/'"""


@pytest.mark.parametrize("kind", ["tmpfs", "overlay", "instance store"])
def test_what_a_stop_empties_is_refused(host, tmp_path, stand_in, kind):
    loop, env = host.attach(formatted(tmp_path)), None
    host.call("mkdir", MOUNT, "/mnt/up", "/mnt/work")
    if kind == "instance store":
        env = stand_in("lsblk", STORE)
        command = ["mount", loop, MOUNT]
    elif kind == "overlay":
        folders = "lowerdir=/etc,upperdir=/mnt/up,workdir=/mnt/work"
        command = ["mount", "-t", kind, kind, "-o", folders, MOUNT]
    else:
        command = ["mount", "-t", kind, "none", MOUNT]
    mounted = host.call(*command)
    assert mounted.returncode == 0, mounted.stderr
    result = volume(host, env=env)
    assert result.returncode == 2 and "a stop of the host empties it" in result.stderr
    assert "--data_dir" in result.stderr and "another --mount" in result.stderr
    assert not host.fstab()


@pytest.mark.parametrize(
    "option, code, text",
    [
        ("ro", 2, "is mounted read-only: sudo mount -o remount,rw"),
        ("noexec", 0, "is mounted noexec: PyTorch cannot run from there"),
    ],
)
def test_a_mount_that_training_cannot_use_is_named(host, tmp_path, option, code, text):
    loop = host.attach(formatted(tmp_path))
    host.call("mkdir", MOUNT)
    host.call("mount", "-o", option, loop, MOUNT)
    result = volume(host)
    assert result.returncode == code and text in result.stdout + result.stderr


@pytest.mark.parametrize(
    "files, mode, code, uid",
    [
        ({}, 0o755, 0, 1000),
        ({"runs__a": "", "imagenet__train_DOT_pack": "", "_DOT_cache__x": ""}, 0o755, 0, 1000),
        ({"resnet50_DOT_old-1__x": ""}, 0o755, 0, 1000),
        ({"thesis_DOT_tex": ""}, 0o755, 2, 0),
        ({"thesis_DOT_tex": ""}, 0o777, 0, 0),
    ],
)
def test_only_a_volume_of_our_own_changes_its_owner(host, tmp_path, files, mode, code, uid):
    loop = host.attach(formatted(tmp_path, **files))
    host.call("mkdir", MOUNT)
    host.call("mount", loop, MOUNT)
    host.call("chmod", f"{mode:o}", MOUNT)
    result = volume(host, env=AS_A_USER)
    assert result.returncode == code, result.stdout + result.stderr
    assert host.call("stat", "-c", "%u", MOUNT).stdout.strip() == str(uid)
    if code:
        assert "holds thesis.tex, which is not ours" in result.stderr
        assert f"sudo chown someone {MOUNT}" in result.stderr


@pytest.mark.parametrize("kind, name", [("ext4", "etc/os-release"), ("xfs", "grub/grub.cfg")])
def test_an_old_root_volume_is_left_alone(host, tmp_path, kind, name):
    image = blank(tmp_path / "image", 320 * MIB)
    tool(f"mkfs.{kind}", "-q", str(image))
    loop = host.attach(image)
    host.call("mkdir", "/mnt/elsewhere")
    host.call("mount", loop, "/mnt/elsewhere")
    host.call("mkdir", f"/mnt/elsewhere/{Path(name).parent}")
    host.call("touch", f"/mnt/elsewhere/{name}")
    host.call("umount", "/mnt/elsewhere")
    before = digest(image)
    result = volume(host, f"--volume={loop}", env=AS_A_USER)
    assert result.returncode == 2 and f"it has {name}" in result.stderr, result.stdout
    assert digest(image) == before and not host.fstab() and not is_mounted(host)


def test_systemd_reads_fstab_again_whenever_it_must(host, tmp_path, stand_in):
    """It would unmount what a line of before was for."""
    host.call("mount", "-t", "tmpfs", "none", "/run")
    host.call("mkdir", "-p", str(fstab.SYSTEMD))
    loop = host.attach(formatted(tmp_path))
    env = stand_in("systemctl", f'echo "$* $(grep -c UUID /etc/fstab)" >>{tmp_path}/calls')
    calls = tmp_path / "calls"
    result = volume(host, f"--volume={loop}", env=env)
    assert result.returncode == 0 and calls.read_text() == "daemon-reload 1\n", result.stderr
    host.call("umount", MOUNT)  # and somebody edits fstab
    result = volume(host, env=env)
    assert result.stdout.index("+ systemctl") < result.stdout.index("+ mount")
    assert calls.read_text() == 2 * "daemon-reload 1\n"
    host.call("umount", MOUNT)
    write_fstab(host)
    env = stand_in("mount", f"{LOOK_REALLY}; exit 32")
    result = volume(host, f"--volume={loop}", env=env)
    assert result.returncode == 2 and not host.fstab()
    assert calls.read_text().endswith("daemon-reload 1\ndaemon-reload 0\n")


def test_a_mount_that_fails_is_taken_back_and_named(host, tmp_path, stand_in):
    """Something else is mounted there, as with a stale memory of blkid, and it stays busy."""
    loop = host.attach(formatted(tmp_path))
    busy = f"case $1 in {MOUNT}) echo target is busy >&2; exit 32 ;; esac"
    stand_in("umount", f'{busy}; exec $(PATH=/usr/bin:/bin command -v umount) "$@"')
    for other, text in (
        ("exit 0", "nothing was mounted at"),
        (f"exec {MOUNT_REALLY} -t tmpfs none {MOUNT}", "none was mounted at"),
    ):
        env = stand_in("mount", f"{LOOK_REALLY}; {other}")
        result = volume(host, f"--volume={loop}", env=env)
        assert result.returncode == 2 and text in result.stderr, result.stdout
        assert not host.fstab()
    assert "warning: umount" in result.stdout and "target is busy" in result.stdout


def test_an_edit_of_fstab_stays_when_a_line_is_taken_back(host, tmp_path, stand_in):
    loop, edit = host.attach(formatted(tmp_path)), "LABEL=x /x ext4 noauto 0 0"
    env = stand_in("mount", f"{LOOK_REALLY}; echo {edit} >>/etc/fstab; exit 32")
    result = volume(host, f"--volume={loop}", env=env)
    assert result.returncode == 2 and host.fstab() == [edit], result.stderr


def test_an_fstab_of_any_kind_is_changed_and_kept(host, tmp_path):
    """A link, with a comment in Latin-1 and lines of Windows."""
    etc, text = host.folder / "etc", b"# gr\xf6sse\r\nLABEL=x /x ext4 defaults 0 0"
    (etc / "kept").mkdir()
    (etc / "kept" / "fstab").write_bytes(text)
    (etc / "fstab").unlink()
    (etc / "fstab").symlink_to("kept/fstab")
    loop = host.attach(formatted(tmp_path))
    result = host.volume(loop)
    assert result.returncode == 0, result.stderr
    assert (etc / "fstab").is_symlink()
    now = (etc / "kept" / "fstab").read_bytes()
    assert now.startswith(text + b"\nUUID=") and now.count(b"\n") == 3
    assert (etc / "fstab.before_setup_and_train").read_bytes() == text


def test_without_room_for_its_line_nothing_is_mounted(host, tmp_path):
    loop = host.attach(formatted(tmp_path))
    host.call("mount", "-o", "remount,bind,ro", "/etc")
    result = host.volume(loop)
    assert result.returncode == 2 and "/etc/fstab cannot be written (Read-only" in result.stderr
    assert not is_mounted(host) and host.call("ls", MOUNT).returncode


def test_files_that_the_mount_hides_are_named(host, tmp_path):
    loop = host.attach(formatted(tmp_path))
    assert host.volume(loop).returncode == 0
    host.call("umount", MOUNT)
    host.call("touch", f"{MOUNT}/of_a_run")
    result = volume(host)
    assert result.returncode == 0 and is_mounted(host)
    assert "warning: " in result.stdout and "(of_a_run), which the volume hides" in result.stdout


@pytest.mark.parametrize("partitions", ["", ",16M\n"])
def test_the_way_out_of_a_table_without_file_systems_is_named(host, tmp_path, partitions):
    image = blank(tmp_path / "image")
    tool("sfdisk", str(image), input=f"label: gpt\n{partitions}")
    loop, before = host.attach(image), digest(image)
    wanted, text = loop, f"sudo wipefs --all {loop}"
    if partitions:
        unread = host.volume(loop, "--format_if_blank")
        assert unread.returncode == 2 and f"sudo partx --update {loop}" in unread.stderr
        tool("partx", "--add", loop)
        wanted = make_node(f"{loop}p1")
        text = f"{wanted} is a partition without a file system"
    for device in {loop, wanted}:
        result = host.volume(device, "--format_if_blank")
        assert result.returncode == 2 and text in result.stderr, result.stderr
    assert digest(image) == before


def test_in_a_container_nothing_is_called_blank(host, tmp_path, stand_in):
    """lsblk lists the host's disks, which have no files there; blkid says nothing of that."""
    listed = [
        {
            "path": f"/dev/nvme{n}n1",
            "type": "disk",
            "size": 90 << 30,
            "model": disks.EBS,
            "serial": f"vol0{n}",
            "mountpoints": mounts,
        }
        for n, mounts in enumerate([[None], ["/etc/hosts"]])
    ]
    env = stand_in("lsblk", f"echo '{json.dumps({'blockdevices': listed})}'")
    for flags in ([], ["--volume=/dev/nvme0n1"], ["--volume=/dev/nvme0n1", "--format_if_blank"]):
        result = volume(host, *flags, env=env)
        assert result.returncode == 2 and "container" in result.stderr
        assert "--data_dir" in result.stderr and "--format_if_blank" not in result.stderr


def test_tools_of_root_need_not_be_on_the_path(host, tmp_path):
    loop = host.attach(blank(tmp_path / "image"))
    env = os.environ | {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    result = volume(host, f"--volume={loop}", "--format_if_blank", env=env)
    assert result.returncode == 0 and is_mounted(host), result.stderr


def test_what_is_ours_is_what_the_script_makes():
    """Its names stand in setup_and_train.sh."""
    script = (REPOSITORY / "setup_and_train.sh").read_text()
    for line in ("DATASETS", "CLONE_NAME"):
        (names,) = (x.partition("=")[2] for x in script.splitlines() if f"readonly {line}=" in x)
        for name in set(names.strip('"').split()) - {"demo"}:
            assert owner.is_ours(name), name
    assert "source=fashion-mnist" in script and owner.is_ours("fashion-mnist")
