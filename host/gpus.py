"""The NVIDIA GPUs of this host: what nvidia-smi says, or /proc in a container without nvidia-smi.

Runs before there is an environment: standard library, Python 3.10.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PCI_DEVICES, NVIDIA_VENDOR = Path("/sys/bus/pci/devices"), "0x10de"
DRIVER = Path("/proc/driver/nvidia")
QUERY = (
    "nvidia-smi",
    "--query-gpu=name,driver_version,compute_cap,memory.total",
    "--format=csv,noheader,nounits",
)
TIMEOUT_S = 20
# Its exit codes for a lost GPU, and for a kernel module of another driver (man nvidia-smi).
LOST, MISMATCH = 15, 18
NO_GPU = "take a g4dn, g5 or g6 instance, or add --cpu for small data"


@dataclass(frozen=True)
class Gpu:
    """One of the host's; what nothing here tells is 0."""

    name: str
    driver: str
    compute: float  # compute capability: 7.5 is Turing (T4), 8.0 A100, 8.6 A10G, 8.9 L4, 9.0 H100
    memory_mib: int

    @property
    def driver_branch(self) -> int:
        """The first part of its version: 580 of 580.95.05."""
        return int(self.driver.partition(".")[0])


def read() -> tuple[list[Gpu], list[str]]:
    """The GPUs, and warnings. Raises ValueError if there is a GPU that nothing can use."""
    if shutil.which(QUERY[0]):
        code, said = ask_driver()
        gpus, others = parse(said)
        if not gpus and (code or others):
            raise ValueError(explain(code, others))
        # Lines between the rows are about a GPU that is lost, or whose infoROM is damaged.
        return gpus, [f"nvidia-smi says: {line}" for line in others]
    if (DRIVER / "version").exists():  # a container that may compute, but has no tools
        return from_proc(), []
    if num_cards():
        raise ValueError(f"there is an NVIDIA GPU and no driver for it: {driver_remedy()}")
    return [], []


def ask_driver() -> tuple[int, str]:
    """nvidia-smi's exit code and output. Raises ValueError if it does not answer in time."""
    pipe = subprocess.PIPE
    smi = subprocess.Popen(
        QUERY, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT, text=True
    )
    try:
        said, _ = smi.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        smi.kill()  # and not waited for: in the driver, signals may not reach it
        raise ValueError(
            f"nvidia-smi does not answer within {TIMEOUT_S} s: a GPU has probably fallen off the "
            "bus; reboot this host"
        ) from error
    return smi.returncode, said


def parse(said: str) -> tuple[list[Gpu], list[str]]:
    """GPUs out of nvidia-smi's CSV, and the lines that are none of it."""
    gpus, others = [], []
    for line in filter(None, map(str.strip, said.splitlines())):
        fields = [field.strip() for field in line.rsplit(",", 3)]
        if len(fields) == 4 and re.match(r"\d+\.\d", fields[1]) and re.match(r"\d+\.\d", fields[2]):
            # GPUs that share the host's memory have none of their own: "[N/A]".
            memory = int(fields[3]) if fields[3].isdigit() else 0
            gpus.append(Gpu(fields[0], fields[1], float(fields[2]), memory))
        else:
            others.append(line)
    return gpus, others


def from_proc() -> list[Gpu]:
    """GPUs as the driver lists them in /proc, or else as many as there are cards."""
    version = re.search(r"\s(\d{3,}\.\d+(\.\d+)?)\s", (DRIVER / "version").read_text())
    if not version:
        raise ValueError(f"{DRIVER / 'version'} names no driver version: install nvidia-smi")
    texts = (path.read_text() for path in sorted(DRIVER.glob("gpus/*/information")))
    models = [re.search(r"^Model:\s*(.*)$", text, re.MULTILINE) for text in texts]
    names = [model[1] for model in models if model] or ["NVIDIA GPU"] * num_cards()
    return [Gpu(name, version[1], 0, 0) for name in names]


def num_cards() -> int:
    """NVIDIA cards on the PCI bus that compute or display, by their class 0x03...."""
    vendors = PCI_DEVICES.glob("*/vendor")
    return sum(
        vendor.read_text().strip() == NVIDIA_VENDOR
        and vendor.with_name("class").read_text().startswith("0x03")
        for vendor in vendors
    )


def explain(code: int, lines: list[str]) -> str:
    """Why nvidia-smi lists no GPU, and what helps."""
    said = lines[0] if lines else f"exit code {code}"
    text = " ".join(lines).lower()
    signs = ("version mismatch", "fallen off the bus", "is lost", "reboot")
    if code in (LOST, MISMATCH) or any(sign in text for sign in signs):
        remedy = "reboot this host; after an update, the old driver stays loaded until then"
    elif "is not a valid field" in text:  # old drivers do not know compute_cap
        remedy = f"the driver is too old: {driver_remedy()}"
    elif not num_cards():
        remedy = f"and there is no NVIDIA GPU on the PCI bus: {NO_GPU}"
    else:
        remedy = driver_remedy()
    return f"nvidia-smi fails ({said}): {remedy}"


def driver_remedy(compute: float = 0) -> str:
    """How to get a driver for a GPU, whose compute capability may be unknown."""
    package = "nvidia-driver-580-server"
    note = "" if compute else f" (for Blackwell, on g7e and p6: {package}-open)"
    package += "-open" if compute >= 10 else ""  # Blackwell: only the open kernel modules drive it
    return (
        "start the host from a Deep Learning Base AMI (Ubuntu), which has one, or install it and "
        f"reboot: sudo apt-get install {package}{note}"
    )
