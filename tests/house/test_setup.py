"""setup_and_train.sh on a host of its own: a loop device as the EBS volume, kills, hang-ups.

What takes long on a real host (pip, packing, measuring, training) is done by a stand-in of its
interpreter in the tests of the steps, and for real in `test_from_nothing_to_a_trained_model`.
"""

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image
from support.commands import REPOSITORY, processes_mentioning, wait_for
from support.data_sources import tar_bytes
from support.devices import MOUNT, REAL, STAND_IN, Host, Setup
from support.needs import needs_root, program
from support.pictures import make_picture
from support.runs import newest_checkpoint, status_of

pytestmark = [needs_root, pytest.mark.usefixtures("no_leftovers")]
VENV = f"{MOUNT}/resnet50"
RUN = Path(f"{MOUNT}/runs/tiny-imagenet")


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path / "host")
    yield host
    host.close()


@pytest.fixture
def setup(host, tmp_path) -> Setup:
    return Setup(host, tmp_path, STAND_IN)


def test_run_twice_the_second_changes_nothing(setup):
    code, out = setup.run()
    assert code == 0, out
    for number, step in enumerate(("host", "volume", "env", "repo", "data", "bench", "train"), 1):
        assert f"== {number}/7 {step}" in out
    assert f"== watch: bash {setup.clone}/setup_and_train.sh --status" in out
    before, fstab = setup.state(), setup.host.fstab()
    code, out = setup.run()
    assert code == 0 and "done" in out, out
    assert setup.state() == before and setup.host.fstab() == fstab
    assert "mkfs" not in out and "pip install" not in out


def kill_and_finish(setup: Setup, when) -> dict[str, object]:
    """Start, kill when the time has come, run again; the state then."""
    process = setup.start()
    when(process)
    setup.kill(process)
    code, out = setup.run()
    assert code == 0, out
    return setup.state()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[dict[str, object], float]:
    """State and seconds of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    host = Host(folder / "host")
    setup, start = Setup(host, folder, STAND_IN), time.monotonic()
    code, out = setup.run()
    assert code == 0, out
    state, seconds = setup.state(), time.monotonic() - start
    host.close()
    return state, seconds


@pytest.mark.parametrize("step", range(1, 8))
def test_killed_at_a_steps_beginning_it_ends_in_the_same_state(setup, undisturbed, step):
    def when(process: subprocess.Popen) -> None:
        while not process.stdout.readline().startswith(f"== {step}/7"):
            assert process.poll() is None

    assert kill_and_finish(setup, when) == undisturbed[0]


@pytest.mark.parametrize(
    "seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(12, 30))]
)
def test_killed_at_any_moment_it_ends_in_the_same_state(setup, undisturbed, seed):
    moment = random.Random(seed).uniform(0, undisturbed[1])
    assert kill_and_finish(setup, lambda process: time.sleep(moment)) == undisturbed[0]


def test_a_dry_run_prints_all_steps_and_changes_nothing(setup):
    code, out = setup.run("--dry_run")
    assert code == 0, out
    wanted = [
        "mkfs.ext4",
        "mount",
        "-m venv",
        "-m pip install",
        "host.smoke_test",
        "host.repository",
    ]
    for command in [*wanted, "prepare_data.py", "bench.py", "host.service", "setsid"]:
        assert any(line.startswith("+ ") and command in line for line in out.splitlines()), command
    assert not setup.host.fstab() and not setup.path(MOUNT).exists()
    assert not (setup.clone / "runs").exists()


def test_without_a_volume_it_says_so_and_offers_a_folder(setup):
    setup.words = [word for word in setup.words if not word.startswith("--volume")]
    code, out = setup.run()
    assert code == 2 and "no data volume is attached" in out and "--data_dir DIR" in out
    assert not setup.path(MOUNT).exists()


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--dataset=cifar"], "--dataset cifar: one of imagenet"),
        (["--only=volume,fly"], "--only fly: steps are host"),
        (["--only=data"], "nothing is mounted at"),
        (["--volume=vol-0123"], "--volume vol-0123: no such volume is attached"),
        (["--volume"], "--volume needs a value"),
        (["--cache", "--data_dir=."], "--data_dir uses none"),
        (["--on_local_changes=burn"], "--on_local_changes burn: one of fail keep"),
        (["--way=cron"], "--way cron: one of systemd"),
    ],
)
def test_mistakes_end_with_2(setup, flags, text):
    code, out = setup.run(*flags)
    assert code == 2 and text in out


def origin_of(clone_dir: Path) -> Path:
    """The clone's files as a repository that can be cloned."""
    for words in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=all"],
    ):
        subprocess.run(["git", "-C", clone_dir, *words], check=True)
    return clone_dir


def test_copied_alone_it_clones_onto_the_volume(setup, tmp_path):
    origin = origin_of(setup.clone)
    setup.clone = tmp_path / "home"
    setup.clone.mkdir()
    shutil.copy2(REPOSITORY / "setup_and_train.sh", setup.clone)
    code, out = setup.run()
    assert code == 2 and "give --repo URL" in out
    (setup.clone / "setup_and_train.sh").chmod(0o644)
    setup.words = ["bash", *setup.words]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    setup.host.call("mount", "-t", "tmpfs", "-o", "noexec", "none", str(temporary))
    for flags in (["--repo=/no/such/repository"], [f"--repo={origin}", "--volume=/dev/null"]):
        code, out = setup.run(*flags, TMPDIR=str(temporary))
        assert code == 2, out
    assert "cannot be cloned" in setup.run("--repo=/no/such/repository")[1]
    assert not setup.host.call("ls", str(temporary)).stdout
    code, out = setup.run(f"--repo={origin}", TMPDIR=str(temporary))
    assert code == 0, out
    on_volume = f"{MOUNT}/ResNet50_ImageNet1K_Training"
    assert setup.path(f"{on_volume}/runs/tiny-imagenet/status.json").exists()
    assert setup.path(f"{VENV}/share/installed").exists()
    assert os.listdir(setup.clone) == ["setup_and_train.sh"]
    code, out = setup.run()  # the clone is there: --repo is not needed any more
    assert code == 0 and "done" in out, out
    code, out = setup.run("--repo=/no/such/repository", "--only=host")
    assert code == 0, out


# systemctl as far as a start needs it: says who asked for what, and starts the unit as its user.
SYSTEMCTL = """\
#!/bin/sh
echo "$(id -u) systemctl $*" >>CALLS
unit=/etc/systemd/system/resnet50-training.service
of() { sed -n "s/^$1=//p" $unit | sed 's/^+-//'; }
case "$1 $2" in
    "is-active "*) echo inactive; exit 3 ;;
    "enable --now")
        cd "$(of WorkingDirectory)" || exit
        {
            eval "$(of ExecStartPre)"
            eval "setpriv --reuid=$(of User) --regid=$(of User) --init-groups $(of ExecStart)"
            eval "$(of ExecStopPost)"
        } >>"$(of StandardOutput | sed 's/^append://')" 2>&1 ;;
esac
"""


def install_stubs(host: Host, stubs: Path, calls: Path) -> Path:
    """Stand-ins that note their calls, and sudo for a trainer, who finds them first; returns the
    file that grants it."""
    stubs.mkdir()
    scripts = {"systemctl": SYSTEMCTL, "shutdown": '#!/bin/sh\necho "$(id -u) $*" >>CALLS\n'}
    for script, text in scripts.items():
        (stubs / script).write_text(text.replace("CALLS", str(calls)))
        (stubs / script).chmod(0o755)
    sudoers = host.folder / "etc" / "sudoers.d" / "trainer"
    sudoers.write_text(
        f"trainer ALL=(ALL) NOPASSWD:ALL\n"
        f'Defaults secure_path="{stubs}:/usr/sbin:/usr/bin:/sbin:/bin"\n'
    )
    sudoers.chmod(0o440)
    return sudoers


def test_as_a_user_with_sudo_and_under_systemd(host):
    """What is on the volume is the user's, what is in /etc root's, and the host is stopped once."""
    program("sudo")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        calls = folder / "calls"
        setup, stubs = Setup(host, folder, STAND_IN), folder / "bin"
        sudoers = install_stubs(host, stubs, calls)
        assert host.call("useradd", "--no-create-home", "trainer").returncode == 0
        # As on a host that systemd has booted, and which can be shut down.
        assert host.call("mount", "-t", "tmpfs", "none", "/run/systemd").returncode == 0
        assert host.call("mkdir", "/run/systemd/system").returncode == 0
        uid = int(host.call("id", "--user", "trainer").stdout)
        subprocess.run(["chown", "--recursive", f"{uid}:{uid}", setup.clone], check=True)
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--init-groups"]
        more = "--way=systemd", "--then=stop-host", "--budget_hours=4"
        setup.words = [*become, *setup.words, *more]

        def start(*flags: str, **more: str) -> tuple[int, str]:
            process = setup.start(*flags, PATH=f"{stubs}:{os.environ['PATH']}", **more)
            out, _ = process.communicate(timeout=240)
            return process.returncode, out

        code, out = start()
        assert code == 0 and "SHUT DOWN" in out, out
        listed = host.call("find", MOUNT, str(setup.clone), "-not", "-user", "trainer")
        assert listed.stdout.split() == [f"{MOUNT}/lost+found"]
        unit_name = "resnet50-training.service"
        unit = setup.path(f"/etc/systemd/system/{unit_name}")
        assert "User=trainer" in unit.read_text() and unit.stat().st_uid == 0
        asked = [line for line in calls.read_text().splitlines() if "is-active" not in line]
        # The volume's mount, then the units.
        reload = "0 systemctl daemon-reload"
        at_the_latest = f"0 -h +264 the budget of the training in {RUN} is spent"  # 4 h and 24 min
        asked = [line.partition(" (resnet50-")[0] for line in asked]
        assert [line for line in asked if line != reload] == [
            at_the_latest,  # before the volume is mounted
            f"0 systemctl reset-failed {unit_name}",
            f"0 systemctl enable --now {unit_name}",
            at_the_latest,  # before the training starts
            f"0 systemctl disable {unit_name}",
            "0 -h +1",
        ]
        assert asked.index(reload, 1) < asked.index(f"0 systemctl enable --now {unit_name}")
        # train.py's words make it start again, and this one finds it done.
        code, out = start("--", "--seed=0")
        assert code == 0 and calls.read_text().count("-h +1") == 1, out
        code, out = start("--only=env", SUDO_USER="trainer")
        assert code == 0, out  # which only counts for root
        setup.words = setup.words[len(become) :]
        code, out = start("--only=env", SUDO_USER="trainer")
        assert code == 2 and "run this as trainer, without sudo" in out
        sudoers.write_text("trainer ALL=(ALL) ALL\n")
        setup.words = [*become, *setup.words]
        code, out = start("--only=train", "--way=setsid", "--then=stop-host")
        assert code == 2 and "--then stop-host needs root" in out
        assert host.call("umount", MOUNT).returncode == 0
        code, out = start("--only=volume")
        assert code == 2 and "sudo does not grant it" in out


def test_new_code_is_begun_anew_with(setup, tmp_path):
    origin = tmp_path / "origin"
    setup.clone.rename(origin)
    origin_of(origin)
    subprocess.run(["git", "clone", "--quiet", origin, setup.clone], check=True)
    script = origin / "setup_and_train.sh"
    script.write_text(script.read_text().replace("== %s", "== new: %s"))
    origin_of(origin)
    code, out = setup.run()
    assert code == 0, out
    assert out.index("== 4/7 repo") < out.index("== new: 1/7 host") < out.index("== new: 7/7 train")


def test_a_second_setup_waits_for_the_first(setup):
    first = setup.start()
    while not first.stdout.readline().startswith("== 3/7"):
        assert first.poll() is None
    code, out = setup.run()
    assert code == 0 and "another setup is running" in out, out
    assert first.wait(timeout=60) == 0
    first.communicate()


def archive(place: Path) -> None:
    """Tiny-ImageNet's shape, as a tar on the volume: three classes, 66 and 21 pictures."""
    top, wnids = "tiny-imagenet-200", ("n01443537", "n01629819", "n01641577")
    files = {f"{top}/wnids.txt": "\n".join(wnids).encode()}
    lines = []
    for label, wnid in enumerate(wnids):
        for i in range(22):
            name = f"{top}/train/{wnid}/images/{wnid}_{i}.JPEG"
            files[name] = as_jpeg(make_picture(100 * label + i, label))
        for i in range(7):
            name = f"val_{7 * label + i}.JPEG"
            files[f"{top}/val/images/{name}"] = as_jpeg(make_picture(1000 + 100 * label + i, label))
            lines.append(f"{name}\t{wnid}\t0\t0\t9\t9\n")
    files[f"{top}/val/val_annotations.txt"] = "".join(lines).encode()
    place.write_bytes(tar_bytes(files))


def as_jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def processes_of(host: Host) -> list[int]:
    """Those of the run on this host; the hosts of tests in other processes have runs there, too."""
    namespace, found = Path(f"/proc/{host.process.pid}/ns/mnt").readlink(), []
    for pid in processes_mentioning(str(RUN)):
        with suppress(FileNotFoundError):  # it ended meanwhile
            if Path(f"/proc/{pid}/ns/mnt").readlink() == namespace:
                found.append(pid)
    return found


def test_from_nothing_to_a_trained_model(host, tmp_path):
    """All steps for real but pip's, with a SIGKILL in the middle of the training."""
    setup = Setup(host, tmp_path, REAL)
    code, out = setup.run("--only=host,volume")
    assert code == 0, out
    code, out = setup.run()
    assert code == 2 and "tiny-imagenet-200.zip cannot be downloaded" in out, out
    archive(setup.path(f"{MOUNT}/tiny-imagenet-200.tar"))

    flags = ["--recipe=tiny", "--", "--epochs=40", "--save_every_steps=3", "--log_every_steps=1"]
    code, out = setup.run(*flags)
    assert code == 0, out
    run_dir = setup.path(str(RUN))
    wait_for(lambda: any((run_dir / "checkpoints").glob("step_*[1-9]*.pt")), what="a checkpoint")
    for pid in processes_of(host):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not processes_of(host), what="the end of all processes")
    killed_at = int(newest_checkpoint(run_dir).stem.removeprefix("step_"))
    assert 0 < killed_at < 160

    code, out = setup.run(*flags)
    assert code == 0 and "mkfs" not in out and "measured already" in out, out
    code, out = setup.run(*flags)
    assert code == 0 and ("training, process" in out or "done" in out), out
    wait_for(lambda: not processes_of(host), 240, what="the end of training")
    assert status_of(run_dir)["state"] == "done" and status_of(run_dir)["step"] == 160
    assert f"step {killed_at}" in (run_dir / "console.log").read_text()
    code, out = setup.run("--status")
    assert code == 0 and "done" in out and "step 160 of 160" in out


def test_too_small_a_volume_is_named_before_anything_is_installed(host, tmp_path):
    setup = Setup(host, tmp_path, STAND_IN, size=200 << 20)
    code, out = setup.run()
    assert code == 2 and "GB free, but the environment takes" in out, out
    assert not setup.path(f"{VENV}/share/installed").exists()


def test_packages_that_cannot_be_had_are_a_message(setup):
    stand_in = setup.python.read_text().replace("exec touch", "exec false")
    setup.python.write_text(stand_in)
    code, out = setup.run()
    assert code == 2 and "the packages cannot be installed" in out and "network" in out


@pytest.mark.parametrize("system", ["ubuntu", "debian"])
def test_on_ubuntu_a_missing_python_is_installed(setup, tmp_path, system):
    """As on Ubuntu 22.04, whose Python is 3.10; apt-get is a stand-in that brings another one."""
    (setup.host.folder / "etc" / "os-release").unlink()
    (setup.host.folder / "etc" / "os-release").write_text(f"NAME=x\nID={system}\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    scripts = {
        "python3": f'case "$1" in -c) echo 3.10 ;; *) exec {sys.executable} "$@" ;; esac',
        "apt-get": f'echo "apt-get $*"; case "$*" in *python3.12-venv*)\n'
        f"cp {setup.python} {tools}/python3.12 ;; esac",
        "add-apt-repository": 'echo "add-apt-repository $*"',
        **{f"python3.{minor}": "exit 1" for minor in (11, 12, 13, 14)},
    }
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    process = setup.start(PATH=f"{tools}:{os.environ['PATH']}", PYTHON="")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == (0 if system == "ubuntu" else 2), out
    assert ("add-apt-repository -y -n ppa:deadsnakes/ppa" in out) == (system == "ubuntu")
    assert ("install python3.12 python3.12-venv" in out) == (system == "ubuntu")
    assert (system == "ubuntu") != ("no Python from 3.11 to 3.14" in out)
