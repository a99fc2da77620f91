"""A host of a test's own: a mount namespace with its own /etc, /var/lib and /mnt."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.clones import clone
from support.commands import PROGRAM_PATH, environment, host_words, program_words
from support.needs import program

MIB = 1 << 20
MOUNT = "/mnt/volume_under_test"


class Host:
    """A mount namespace, and the loop devices that its tests attach."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.loops = folder, []
        shutil.copytree("/etc", folder / "etc", symlinks=True)
        (folder / "etc" / "fstab").write_text("# fstab of this test\n")
        (folder / "lib").mkdir()
        # blkid remembers what lay on a loop device before: its memory is this test's own, too.
        script = (
            f"mount --bind {folder}/etc /etc && mount --bind {folder}/lib /var/lib && "
            "mkdir -p /run/blkid && mount -t tmpfs none /run/blkid && "
            "mount -t tmpfs none /mnt && exec sleep 600"
        )
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        )
        deadline = time.monotonic() + 20
        while self.call("mountpoint", "-q", "/mnt").returncode:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def call(self, *command: str, **more: object) -> subprocess.CompletedProcess:
        program(command[0])
        return subprocess.run(
            ["nsenter", "--mount", f"--target={self.process.pid}", *command],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd="/",
            timeout=120,
            **more,
        )

    def program(self, name: str, *words: str) -> subprocess.CompletedProcess:
        """Run one of support/programs."""
        return self.call(*map(str, program_words(name, *words)), env=environment(**PROGRAM_PATH))

    def volume(self, loop: str, *flags: str) -> subprocess.CompletedProcess:
        return self.call(*host_words("volume", f"--mount={MOUNT}", f"--volume={loop}", *flags))

    def attach(self, image: Path, *flags: str) -> str:
        done = subprocess.run(
            ["losetup", "--find", "--show", *flags, str(image)],
            check=True,
            capture_output=True,
            text=True,
        )
        self.loops.append(done.stdout.strip())
        return self.loops[-1]

    def fstab(self) -> list[str]:
        return (self.folder / "etc" / "fstab").read_text().splitlines()[1:]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for loop in self.loops:
            subprocess.run(["partx", "--delete", loop], check=False, capture_output=True)
            subprocess.run(["losetup", "--detach", loop], check=False)


def blank(path: Path, size: int = 64 * MIB) -> Path:
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def tool(*command: str, **more: object) -> None:
    words = [program(command[0]), *command[1:]]
    subprocess.run(words, check=True, capture_output=True, text=True, **more)


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_node(partition: str) -> str:
    """A partition's device file, which udev makes where it runs."""
    number = Path(f"/sys/class/block/{Path(partition).name}/dev").read_text().strip()
    if not Path(partition).exists():
        tool("mknod", partition, "b", *number.split(":"))
    return partition


# A Python 3.11 that makes "environments" of itself, and finishes at once what really takes long.
STAND_IN = """\
#!/bin/sh
word() { while [ $# -gt 1 ]; do [ "$1" = "$want" ] && printf %s "$2"; shift; done; }
case "$*" in
    -c*) echo 3.11 ;;
    "-m venv "*) mkdir -p "$3/bin" && exec cp "$0" "$3/bin/python" ;;
    "-m pip config list") echo "global.no-index='1'" ;; # so that uv is not used
    "-m pip install"*) sleep 0.05; cd "${0%/bin/python}" && mkdir -p share
        exec touch share/installed ;;
    "-m host.smoke_test"*) test -f "${0%/bin/python}/share/installed" ;;
    *"-m host."*) exec python3 "$@" ;;
    prepare_data.py*) want=--out; out=$(word "$@"); mkdir -p "$out"; sleep 0.05
        exec touch "$out/train.pack" "$out/val.pack" ;;
    bench.py*) want=--json; echo '{}' >"$(word "$@")" ;;
    train.py*--print_config) exit 0 ;;
    train.py*) want=--run_dir; out=$(word "$@"); mkdir -p "$out/checkpoints"
        echo '{"state": "done", "attempt": "a", "step": 12, "stop_step": 12}' >"$out/status.new"
        exec mv "$out/status.new" "$out/status.json" ;;
esac
"""
REAL = """\
#!/bin/sh
case "$*" in
    -c*) echo 3.11 ;;
    "-m venv "*) mkdir -p "$3/bin" && exec cp "$0" "$3/bin/python" ;;
    "-m pip config list") echo "global.no-index='1'" ;;
    "-m pip "*) exit 0 ;;
    bench.py*) exec PYTHON "$@" --seconds=1 ;; # instead of 10 for each of its figures
    *) exec PYTHON "$@" ;;
esac
"""


class Setup:
    """The script in a clone on a host, with a blank volume attached."""

    def __init__(self, host: Host, folder: Path, interpreter: str, size: int = 20 << 30) -> None:
        self.host, self.folder = host, folder
        self.clone = clone(folder / "clone")
        self.python = folder / "python"
        self.python.write_text(interpreter.replace("PYTHON", sys.executable))
        self.python.chmod(0o755)
        self.loop = host.attach(blank(folder / "volume", size))
        self.words = [
            "./setup_and_train.sh",
            f"--volume={self.loop}",
            f"--mount={MOUNT}",
            "--cpu",
            "--dataset=tiny-imagenet",
            "--format_if_blank",
            "--way=setsid",
        ]

    def start(self, *flags: str, **more: str) -> subprocess.Popen:
        """In a session of its own, without a terminal, a HOME or a user's environment."""
        clean = {"PATH": os.environ["PATH"], "PYTHON": str(self.python), "OMP_NUM_THREADS": "1"}
        enter = ["nsenter", "--mount", f"--target={self.host.process.pid}", f"--wd={self.clone}"]
        return subprocess.Popen(
            [*enter, *self.words, *flags],
            env=clean | more,
            text=True,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *flags: str, **more: str) -> tuple[int, str]:
        process = self.start(*flags, **more)
        out, _ = process.communicate(timeout=240)
        return process.returncode, out

    def kill(self, process: subprocess.Popen) -> None:
        """SIGKILL to the script and everything that it waits for."""
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def state(self) -> dict[str, object]:
        """What a run of the script leaves behind, without what differs by time or UUID."""
        listed = self.host.call("find", MOUNT, "-not", "-name", "lost+found", "-printf", "%P\n")
        fstab = [line.split()[1:] for line in self.host.fstab()]
        kind = self.host.call("findmnt", "-no", "FSTYPE", MOUNT).stdout.strip()
        files = {name for name in listed.stdout.splitlines() if "console.log" not in name}
        return {"files": files, "fstab": fstab, "kind": kind}

    def path(self, name: str) -> Path:
        """A path of the host, as seen from here."""
        return Path(f"/proc/{self.host.process.pid}/root{name}")
