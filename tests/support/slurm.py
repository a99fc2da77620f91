"""A Slurm cluster on this machine: Debian's own daemons, without systemd and without cgroups.

Each node is a slurmd in a mount namespace of its own, by which all that runs on it is found, and
killed. There the host has the node's name, /etc/hosts leads all names to 127.0.0.1, and local/ is
the node's own disk.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from support.commands import REPOSITORY, environment, wait_for

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "mungekey")
NODES = ("n0", "n1")
COMMAND_S = 60
# Two partitions of the same nodes: a job in the second one takes them from a job in the first.
# Memory is not counted; a node that did not answer for 10 s is down, until it answers again.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
FirstJobId={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
GresTypes=gpu
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdDebug=verbose
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=usual Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE
PartitionName=urgent Nodes=ALL PriorityTier=9 MaxTime=INFINITE
"""
NODE = "NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs=2 Gres=gpu:{gpus}\n"


@dataclass
class Cluster:
    """Two nodes of two cores each, and the commands of one who uses them."""

    folder: Path
    nodes: dict[str, subprocess.Popen] = field(default_factory=dict)  # each one's slurmd

    @property
    def local(self) -> Path:
        """A folder that is another one on every node."""
        return self.folder / "local"

    def call(self, *words: object, cwd: Path = REPOSITORY, **more: str) -> str:
        """What a command of Slurm prints; it must succeed."""
        result = subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        assert result.returncode == 0, f"{words}: {result.stdout}{result.stderr}"
        return result.stdout

    def environment(self, **more: str) -> dict[str, str]:
        return environment(SLURM_CONF=str(self.folder / "slurm.conf"), **more)

    def submit(self, *words: object, cwd: Path = REPOSITORY, **more: str) -> str:
        """Submit a job with its log in the cluster's folder; returns its number."""
        log = f"--output={self.folder}/%j.out"
        return self.call("sbatch", "--parsable", log, *words, cwd=cwd, **more).strip()

    def log(self, job: str) -> str:
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def show(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`: JobState, ExitCode, Restarts, ..."""
        words = self.call("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job: str, state: str, timeout_s: float = 120) -> dict[str, str]:
        """Wait until a job is in this state, and nothing of it runs on any node."""

        def is_there() -> bool:
            time.sleep(0.2)  # a command takes 10 ms of a core
            queued = self.call("squeue", "--noheader", "--states=all", "--format=%i %T").split("\n")
            is_completing = bool(self.call("squeue", "--noheader", "--states=completing"))
            return f"{job} {state}" in queued and (state == "RUNNING" or not is_completing)

        try:
            wait_for(is_there, timeout_s, f"job {job} to be {state}")
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.show(job)}\n{self.log(job)}") from None
        return self.show(job)

    def has_signaled(self, job: str, signum: int) -> bool:
        """Whether the job's programs on all nodes were sent a signal since it was last started."""
        text = f"Sent signal {int(signum)} to StepId={job}.0"
        return all(text in (self.folder / f"slurmd-{name}.log").read_text() for name in NODES)

    def update(self, job: str, **settings: object) -> None:
        words = [f"{name}={value}" for name, value in settings.items()]
        self.call("scontrol", "update", f"JobId={job}", *words)

    def start_now(self, job: str, **settings: object) -> None:
        """Start a requeued job without the two minutes that Slurm lets it wait.

        But for two seconds: nodes refuse a job's start from the second of its last end ("Job
        credential revoked").
        """
        time.sleep(2)
        self.update(job, StartTime="now", **settings)

    def start_node(self, name: str) -> None:
        script = 'hostname "$0" && mount --bind "$1" /etc/hosts && mount -t tmpfs none "$2" && '
        script += 'exec slurmd -D -N "$0"'
        words = [script, name, self.folder / "hosts", self.local]
        self.nodes[name] = self.start_daemon(["unshare", "--mount", "--uts", "sh", "-c", *words])

    def start_daemon(self, words: Sequence[object]) -> subprocess.Popen:
        with open(self.folder / "daemons.log", "a") as log:
            return subprocess.Popen(
                [str(word) for word in words],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_node(self, name: str) -> None:
        """End all that runs on a node, at once: its slurmd, its jobs' steps and their programs."""
        slurmd = self.nodes.pop(name)
        while pids := processes_in(namespace_of(slurmd.pid)) if slurmd.poll() is None else []:
            # The slurmd last: its namespace is how the others are found.
            for pid in sorted(pids, key=lambda pid: pid == slurmd.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                slurmd.wait(1)


def namespace_of(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/mnt")  # noqa: PTH115 (the text of the link)


def processes_in(namespace: str) -> list[int]:
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError):  # it ended meanwhile
            if namespace_of(pid) == namespace:
                found.append(pid)
    return found


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def cluster(gpus: int = 0) -> Iterator[Cluster]:
    """A cluster of two idle nodes; all that still runs on it in the end is killed.

    gpus: what each node counts as such; they are devices that no test opens.
    """
    # Not in pytest's folders, whose names are too long for a socket's.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    ours = Cluster(folder)
    port, *node_ports = free_ports(1 + len(NODES))
    host = socket.gethostname()
    text = CONFIGURATION.format(folder=folder, host=host, port=port)
    for name, node_port in zip(NODES, node_ports, strict=True):
        text += NODE.format(name=name, port=node_port, gpus=gpus)
    (folder / "slurm.conf").write_text(text)
    devices = f"Name=gpu File=/dev/tty[1-{gpus}]\n" if gpus else ""
    (folder / "gres.conf").write_text(devices)
    (folder / "hosts").write_text("127.0.0.1 localhost " + " ".join(NODES) + "\n")
    for name in ("state", "local"):
        (folder / name).mkdir()
    files = [f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    files += [f"--{name}-file={folder}/munge.{name}" for name in ("log", "pid", "seed")]
    daemons = []
    try:
        words = ["mungekey", "--create", f"--keyfile={folder}/munge.key"]
        subprocess.run(words, check=True, timeout=COMMAND_S)
        daemons.append(ours.start_daemon(["munged", "--foreground", "--force", *files]))
        wait_for((folder / "munge.socket").exists, 20, "munged")
        daemons.append(ours.start_daemon(["slurmctld", "-D", "-c"]))
        for name in NODES:
            ours.start_node(name)
        wait_for(lambda: is_idle(ours), 60, "two idle nodes")
        yield ours
    finally:
        for name in list(ours.nodes):
            ours.kill_node(name)
        for daemon in reversed(daemons):
            daemon.kill()
            daemon.wait()
        os.environ.get("KEEP") or shutil.rmtree(folder)


def is_idle(ours: Cluster) -> bool:
    time.sleep(0.1)
    words = ["sinfo", "--noheader", "--partition=usual", "--format=%D %T"]
    result = subprocess.run(
        words, env=ours.environment(), capture_output=True, text=True, timeout=COMMAND_S
    )
    return result.stdout.split() == [str(len(NODES)), "idle"]
