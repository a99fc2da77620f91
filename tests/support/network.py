"""Two hosts on this machine: network namespaces that a cable joins, with names of their own."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.commands import PROGRAM_PATH, REPOSITORY, start, wait_for
from support.needs import program

CABLE = "veth0"  # in either host
TRAIN = REPOSITORY / "train.py"


@dataclass(frozen=True)
class Host:
    """A name, and the process that holds this host's namespaces."""

    name: str
    pid: int

    def words(self, words: Sequence[object], cwd: Path) -> list[object]:
        """What runs a command on this host, in a folder, as the very process that is started."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--uts", "--mount"]
        return [*enter, "sh", "-c", 'cd "$0" && exec "$@"', cwd, *words]

    def run(self, *words: str) -> None:
        subprocess.run(self.words(words, Path("/")), check=True, timeout=20)

    def cable(self, state: str) -> None:
        """Plug the cable in or out: state is "up" or "down"."""
        self.run("ip", "link", "set", CABLE, state)


@contextmanager
def two_hosts(folder: Path, names: tuple[str, str] = ("node1", "node2")) -> Iterator[list[Host]]:
    """Two hosts that know each other by name and have no other network."""
    folder.mkdir(exist_ok=True)
    table = folder / "hosts"
    lines = [f"10.99.0.{number} {name}\n" for number, name in enumerate(names, 1)]
    table.write_text("127.0.0.1 localhost\n" + "".join(lines))
    script = f"hostname $0 && mount --bind {table} /etc/hosts && exec sleep 900"
    program("ip")
    hold = ["unshare", "--net", "--uts", "--mount", "sh", "-c", script]
    holders = [subprocess.Popen([*hold, name]) for name in names]
    try:
        hosts = [Host(name, holder.pid) for name, holder in zip(names, holders, strict=True)]
        for host in hosts:
            wait_for(lambda host=host: "sleep" in Path(f"/proc/{host.pid}/comm").read_text(), 20)
        hosts[0].run(
            "ip",
            "link",
            "add",
            "name",
            CABLE,
            "type",
            "veth",
            "peer",
            "name",
            CABLE,
            "netns",
            str(hosts[1].pid),
        )
        for number, host in enumerate(hosts, 1):
            host.run("ip", "addr", "add", f"10.99.0.{number}/24", "dev", CABLE)
            host.run("ip", "link", "set", "lo", "up")
            host.cable("up")
        yield hosts
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def torchrun_on(
    hosts: Sequence[Host],
    flags: Sequence[object],
    cwd: Path,
    script: Path = REPOSITORY / "train.py",
) -> list[subprocess.Popen]:
    """The command of docs/scaling.md for several hosts, on each of these, one rank per host."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={len(hosts)}",
        "--nproc_per_node=1",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint={hosts[0].name}:29500",
        "--rdzv_id=resnet50",
        "--max_restarts=0",
        script,
    ]
    return [start(host.words([*torchrun, *flags], cwd), cwd, **PROGRAM_PATH) for host in hosts]
