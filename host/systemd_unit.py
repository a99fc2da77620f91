"""The systemd unit of a training: restarted after crashes and reboots, not after mistakes."""

from collections.abc import Sequence
from pathlib import Path

# train.py's exit codes: 2 the user must change something, 3 diverged. After 75, interrupted and
# resumable, and after a crash the unit starts again; after `systemctl stop` it does not. A start
# may take as long as a copy to instance store does (ExecStartPre).
MARK = "# Run folder: "
UNIT = """\
# Written by setup_and_train.sh. Status: systemctl status {name}; log: {log}
{mark}{run_dir}
[Unit]
Description=ResNet50 training in {folder}
Wants=network-online.target
After=network-online.target dlami-nvme.service
RequiresMountsFor={mounts}
StartLimitIntervalSec=3600
StartLimitBurst=8

[Service]
Type=exec
User={user}
WorkingDirectory={folder}
{before}ExecStart={command}
{after}Restart=on-failure
RestartSec=30
TimeoutStartSec=infinity
RestartPreventExitStatus=2 3
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec=110
LimitNOFILE=1048576
OOMPolicy=stop
NoNewPrivileges=yes
StandardOutput=append:{log}
StandardError=inherit

[Install]
WantedBy=multi-user.target
"""


def text(
    *,
    name: str,
    command: Sequence[str],
    folder: Path,
    run_dir: Path,
    log: Path,
    user: str,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
) -> str:
    """The unit file.

    command: absolute path of the program and its arguments; before, after: commands that run as
    root before each start and after each end. If they fail, training starts all the same.
    """
    absolute = [word for word in command if word.startswith("/")]  # environment, data, run folder
    return UNIT.format(
        name=name,
        command=join(command),
        folder=escape(str(folder)),
        log=escape(str(log)),
        mark=MARK,
        run_dir=run_dir.resolve(),
        mounts=join([str(folder), str(log.parent), *absolute]),
        user=user,
        before=f"ExecStartPre=+-{join(before)}\n" if before else "",
        after=f"ExecStopPost=+-{join(after)}\n" if after else "",
    )


def run_dir_of(unit: Path) -> str:
    """The run folder that an installed unit trains in; empty without a unit of ours."""
    for line in unit.read_text().splitlines() if unit.exists() else []:
        if line.startswith(MARK):
            return line.removeprefix(MARK)
    return ""


def join(words: Sequence[str]) -> str:
    """A command line of a unit."""
    return " ".join(quote(word) for word in words)


def quote(word: str) -> str:
    """One word of a unit's command line (systemd.service(5), "Command lines")."""
    safe = escape(word).replace("$", "$$")
    if safe and not set(safe) & set(" \t\n\"'\\;"):
        return safe
    for old, new in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        safe = safe.replace(old, new)
    return f'"{safe}"'


def escape(text: str) -> str:
    """Percent signs start specifiers (systemd.unit(5))."""
    return text.replace("%", "%%")
