"""Which disk is the data volume: listings as lsblk gives them on EC2; and what counts as blank.

Model strings and serial numbers as docs.aws.amazon.com/ebs describes them; sizes of the instance
types' own NVMe from their product pages.
"""

import argparse
import json
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from host import disks, volume
from host.changes import HostChanges

GB = 10**9


def entry(
    path: str, kind: str, size_gb: float, model=None, serial=None, mounts=(), parts=()
) -> dict:
    """One device of lsblk's JSON."""
    listed = {
        "path": path,
        "type": kind,
        "size": int(size_gb * GB),
        "model": model,
        "serial": serial,
        "mountpoints": list(mounts) or [None],
    }
    return {**listed, "children": list(parts)} if parts else listed


def part(path: str, *mounts: str, kind: str = "part", parts=()) -> dict:
    return entry(path, kind, 90, mounts=mounts, parts=parts)


def ebs(name: str, serial: str, *parts: dict, mounts=(), size_gb=300) -> dict:
    return entry(f"/dev/{name}", "disk", size_gb, disks.EBS, serial, mounts, parts)


def store(name: str, *parts: dict, mounts=(), size_gb=225) -> dict:
    serial = f"AWS22F{name[4]}1234"
    return entry(f"/dev/{name}", "disk", size_gb, disks.INSTANCE_STORE, serial, mounts, parts)


def root(name: str = "nvme0n1", size_gb=90) -> dict:
    boot = [part(f"/dev/{name}p14"), part(f"/dev/{name}p15", "/boot/efi")]
    return ebs(name, "vol0root", part(f"/dev/{name}p1", "/"), *boot, size_gb=size_gb)


SNAPS = [entry(f"/dev/loop{n}", "loop", 0.07, mounts=[f"/snap/core20/{n}"]) for n in range(3)]
DATA, OTHER = ebs("nvme1n1", "vol0aaa111"), ebs("nvme2n1", "vol0bbb222")
FORMATTED = ebs("nvme1n1", "vol0aaa111", part("/dev/nvme1n1p1"))
RAID = part("/dev/md0", "/data", kind="raid0")
XEN = [
    entry("/dev/xvda", "disk", 90, parts=[part("/dev/xvda1", "/")]),
    entry("/dev/xvdf", "disk", 322),
]
LVM = part("/dev/mapper/vg.01-lv_ephemeral", "/opt/dlami/nvme", kind="lvm")

CHOSEN = {
    "g4dn.xlarge: one EBS volume beside root and instance store": (
        [*SNAPS, root(), store("nvme1n1", size_gb=125), ebs("nvme2n1", "vol0aaa111")],
        "",
        "/dev/nvme2n1",
    ),
    "g5.4xlarge: instance store taken by the Deep Learning AMI": (
        [root(), store("nvme2n1", LVM, size_gb=600), DATA],
        "",
        "/dev/nvme1n1",
    ),
    "g6.12xlarge: four instance-store disks": (
        [root(), DATA, *(store(f"nvme{n}n1", size_gb=940) for n in range(2, 6))],
        "",
        "/dev/nvme1n1",
    ),
    "p4d.24xlarge: eight, and root found last": (
        [
            *(store(f"nvme{n}n1", size_gb=1000) for n in range(8)),
            ebs("nvme8n1", "vol0aaa111"),
            root("nvme9n1"),
        ],
        "",
        "/dev/nvme8n1",
    ),
    "root on nvme1, data on nvme0": (
        [ebs("nvme0n1", "vol0aaa111"), root("nvme1n1")],
        "",
        "/dev/nvme0n1",
    ),
    "a volume from a snapshot, with a partition and data on it": (
        [root(), FORMATTED],
        "",
        "/dev/nvme1n1",
    ),
    "two EBS volumes, one of them in use": (
        [root(), ebs("nvme1n1", "vol0ccc333", mounts=["/home"]), OTHER],
        "",
        "/dev/nvme2n1",
    ),
    "two EBS volumes, by id": ([root(), DATA, OTHER], "vol-0bbb222", "/dev/nvme2n1"),
    "the same ids in swapped order": (
        [root(), ebs("nvme1n1", "vol0bbb222"), ebs("nvme2n1", "vol0aaa111")],
        "vol-0bbb222",
        "/dev/nvme1n1",
    ),
    "by device": ([root(), DATA, OTHER], "/dev/nvme1n1", "/dev/nvme1n1"),
    "by partition": ([root(), FORMATTED], "/dev/nvme1n1p1", "/dev/nvme1n1p1"),
    "another maker's disk, by device": (
        [root(), entry("/dev/sdb", "disk", 500, "Some SSD", "S1")],
        "/dev/sdb",
        "/dev/sdb",
    ),
}
REFUSED = {
    "no data volume": ([root()], "", "no data volume is attached", "holds the root file system"),
    "no disk": ([], "", "no disk at all", "--data_dir"),
    "instance store only": (
        [root(), store("nvme1n1")],
        "",
        "no data volume",
        "erased when the host stops",
    ),
    "two free volumes": ([root(), DATA, OTHER], "", "vol-0aaa111", "vol-0bbb222"),
    "the only other one is swap": (
        [root(), ebs("nvme1n1", "vol0a", mounts=["[SWAP]"])],
        "",
        "swap space",
    ),
    "the only other one is RAID": ([root(), ebs("nvme1n1", "vol0a", RAID)], "", "mounted at /data"),
    "unmounted LVM": (
        [root(), ebs("nvme1n1", "vol0a", part("/dev/mapper/vg-lv", kind="lvm"))],
        "",
        "is part of lvm",
    ),
    "another maker's disk": (
        [root(), entry("/dev/sdb", "disk", 500, "Some SSD", "S1")],
        "",
        "is not an EBS volume (Some SSD)",
        "/dev/sdb, 500 GB: --volume /dev/sdb",
    ),
    "Xen, which tells no model": (XEN, "", "may be one: /dev/xvdf, 322 GB: --volume /dev/xvdf"),
    "Google's": (
        [root(), entry("/dev/sdb", "disk", 500, "PersistentDisk", "data")],
        "",
        "--volume /dev/sdb; or",
    ),
    "Google's, and erased by a stop": (
        [root(), entry("/dev/nvme1n1", "disk", 375, "nvme_card", "local-ssd-0")],
        "",
        "erased when the host stops",
        "Attach an EBS volume" if not disks.in_container() else "a container",
    ),
    "nothing in them": ([root(), entry("/dev/nbd0", "disk", 0)], "", "file system). "),
    "mounted already": (
        [root(), ebs("nvme1n1", "vol0a", part("/dev/nvme1n1p1", "/data"))],
        "",
        "is mounted at /data)",
        "To use one where it is mounted: --mount /data; or",
    ),
    "mounted already, by id": (
        [root(), ebs("nvme1n1", "vol0a", mounts=["/data"])],
        "vol-0a",
        "is mounted at /data: use it there, --mount /data",
    ),
    "in a container": (
        [ebs("nvme0n1", "vol0root"), ebs("nvme1n1", "vol0a", mounts=["/etc/hosts"])],
        "",
        "looks like a container",
        "--data_dir",
    ),
    "an id that is not attached": (
        [root(), DATA],
        "vol-0ccc333",
        "no such volume is attached",
        "vol-0aaa111",
    ),
    "root by id": ([root(), DATA], "vol-0root", "holds the root file system"),
    "root by device": ([root(), DATA], "/dev/nvme0n1", "holds the root file system"),
    "a free partition of root's disk": (
        [root(), DATA],
        "/dev/nvme0n1p14",
        "holds the root file system",
    ),
    "instance store by device": ([root(), store("nvme1n1")], "/dev/nvme1n1", "--cache"),
    "one mounted elsewhere": (
        [root(), ebs("nvme1n1", "vol0a", mounts=["/home"])],
        "vol-0a",
        "is mounted at /home",
    ),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_the_right_volume(case):
    listed, wanted, path = CHOSEN[case]
    assert disks.choose(disks.parse({"blockdevices": listed}), wanted).path == path


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_that_names_the_candidates(case):
    listed, wanted, *texts = REFUSED[case]
    with pytest.raises(ValueError) as refusal:
        disks.choose(disks.parse({"blockdevices": listed}), wanted)
    for text in texts:
        assert text in str(refusal.value)


ORDERS = st.permutations(range(6))


@given(order=ORDERS, num_ebs=st.integers(1, 3), num_stores=st.integers(0, 3))
def test_names_and_order_do_not_matter(order, num_ebs, num_stores):
    """However the kernel numbers them: one free volume is found, and of several none is guessed."""
    names = [f"nvme{number}n1" for number in order]
    listed = [root(names.pop())]
    listed += [ebs(names.pop(), f"vol0e{n}") for n in range(num_ebs)]
    listed += [store(names.pop()) for _ in range(min(num_stores, len(names)))]
    found = disks.parse({"blockdevices": sorted(listed, key=lambda disk: disk["path"])})
    if num_ebs == 1:
        assert disks.choose(found, "").volume_id == "vol-0e0"
    else:
        with pytest.raises(ValueError, match=f"{num_ebs} volumes could be it"):
            disks.choose(found, "")
    assert disks.choose(found, "vol-0e0").volume_id == "vol-0e0"


MODELS = [*3 * [disks.EBS], *disks.EPHEMERAL[:2], "PersistentDisk", "Some SSD", None]
OURS = [{"TYPE": "ext4", "UUID": "1"}, {"TYPE": "xfs", "UUID": "2"}]
OTHERS = [{"TYPE": kind} for kind in ("swap", "crypto_LUKS", "LVM2_member", "btrfs")]
HOLDS = [{}, *OURS, {}, *OURS, {}, *OTHERS]
RARELY = st.integers(0, 5).map(lambda number: number == 5)
MOUNTS = st.sampled_from(["/data", "/home", "[SWAP]", "/etc/hosts"])
BUILT = st.sampled_from(["lvm", "crypt", "raid0", "md"])


@st.composite
def hosts(draw: st.DrawFn) -> tuple[list[dict], dict[str, dict], set[str]]:
    """lsblk's listing, what blkid says of each device, and which of them hold a system."""
    holds, systems, listed = {}, set(), []
    has_root = not draw(RARELY)
    for number in range(draw(st.integers(2, 3))):
        style = draw(st.sampled_from(["nvme{}n1", "xvd{}", "sd{}", "nbd{}"]))
        path = "/dev/" + style.format(number if "n" in style else "abcde"[number])
        parts = []
        for index in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
            name = f"{path}p{index + 1}"
            built = [entry(f"{name}x", draw(BUILT), 9)] if draw(RARELY) else []
            used = [draw(MOUNTS)] if draw(RARELY) else []
            parts.append(entry(name, "part", 90, mounts=used, parts=built))
        if number == 0 and has_root:
            parts = [part(f"{path}p1", "/"), *parts[1:]]
        used = [draw(MOUNTS)] if not parts and draw(RARELY) else []
        size, model = draw(st.sampled_from([100, 300, 0])), draw(st.sampled_from(MODELS))
        serial = draw(st.sampled_from([None, f"vol0{number}", f"S{number}"]))
        listed.append(entry(path, "disk", size, model, serial, used, parts))
        for device in (path, *(p["path"] for p in parts)):
            holds[device] = draw(st.sampled_from(HOLDS))
            if holds[device] in OURS and draw(RARELY):
                systems.add(device)
        if parts:
            holds[path] = {"PTTYPE": "gpt"}
    return draw(st.permutations(listed)), holds, systems


def everything(listed: dict) -> Iterator[dict]:
    yield listed
    for child in listed.get("children", ()):
        yield from everything(child)


def test_no_choice_of_ours_harms_anything(monkeypatch):
    """On any host: what is mounted or formatted is an EBS volume that nothing else can want."""
    chosen, formatted = [], []
    monkeypatch.setattr(volume, "why_no_part", lambda path, parts: "")
    monkeypatch.setattr(volume, "mount_for_good", lambda device, *_: chosen.append(device))
    monkeypatch.setattr(volume, "wait_for_volume", lambda *_: disks.choose(disks.read(), ""))
    monkeypatch.setattr(disks, "in_use", lambda path: False)

    # Of 600 random hosts, sometimes none has a volume to format: two that certainly have one.
    blank = {device["path"]: {} for device in everything(root())} | {DATA["path"]: {}}

    @settings(max_examples=600)
    @given(host=hosts(), flag=st.booleans())
    @example(host=([root(), DATA], blank, set()), flag=True)
    @example(host=([root(), DATA], blank | {DATA["path"]: OURS[0]}, set()), flag=False)
    def look(host, flag):
        listed, holds, systems = host
        monkeypatch.setattr(disks, "read", lambda: disks.parse({"blockdevices": listed}))
        monkeypatch.setattr(disks, "contents", holds.__getitem__)
        monkeypatch.setattr(disks, "not_blank", lambda path: holds[path].get("TYPE", ""))
        monkeypatch.setattr(disks, "operating_system", lambda p, _: "etc" if p in systems else "")
        args = argparse.Namespace(mount="/no/mount", volume="", wait_s=0, format_if_blank=flag)
        before = len(chosen)
        try:
            volume.mount_anew(args, HostChanges(dry_run=True))
        except ValueError:
            assert len(chosen) == before
            return
        device = chosen[-1]
        (whole,) = (disk for disk in listed if device in [d["path"] for d in everything(disk)])
        assert whole["model"] == disks.EBS and whole["size"] and device not in systems
        for inner in everything(whole):
            assert inner["mountpoints"] == [None] and inner["type"] in ("disk", "part")
        if holds[device] not in OURS:
            assert flag and holds[device] == {} and device == whole["path"]
            assert "children" not in whole
            formatted.append(device)

    look()
    assert chosen and formatted, "no host had a volume to choose"


def test_an_lsblk_of_before_2_37_is_understood(monkeypatch, tmp_path):
    """Debian 11's knows only MOUNTPOINT."""
    listing = {"blockdevices": [{**entry("/dev/sda", "disk", 9), "mountpoint": "/"}]}
    del listing["blockdevices"][0]["mountpoints"]
    (tmp_path / "lsblk").write_text(
        "#!/bin/sh\ncase $* in *MOUNTPOINTS) echo 'lsblk: unknown column: MOUNTPOINTS' >&2; exit 1 "
        f";; *) echo '{json.dumps(listing)}' ;; esac\n"
    )
    (tmp_path / "lsblk").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert [disk.mounts for disk in disks.read()] == [("/",)]


NOTHING = json.dumps({"blockdevices": [entry("/dev/sda", "disk", 9) | {"size": None}]})


@pytest.mark.parametrize("listing", ["{}", "[]", "", NOTHING, NOTHING.replace('"/dev/sda"', "3")])
def test_an_lsblk_that_cannot_be_understood_is_one_message(monkeypatch, tmp_path, listing):
    (tmp_path / "lsblk").write_text(f"#!/bin/sh\necho '{listing}'\n")
    (tmp_path / "lsblk").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ValueError, match=r"lsblk says .* --data_dir DIR"):
        disks.read()


@given(size=st.integers(1, 64 << 30))
def test_what_is_read_lies_on_the_device_and_covers_its_ends(size):
    places = list(disks.places(size))
    assert all(offset >= 0 and length > 0 and offset + length <= size for offset, length in places)
    assert min(offset for offset, _ in places) == 0
    assert max(offset + length for offset, length in places) == size
    if size <= disks.READ_WHOLE_BYTES:
        assert sum(length for _, length in places) == size
    else:
        assert len(places) > disks.NUM_SAMPLES


def test_this_hosts_own_disks_can_be_listed():
    assert isinstance(disks.read(), list)
