"""The systemd unit of a training: restarted after crashes and reboots, not after mistakes."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

# train.py's exit codes: 2 the user must change something, 3 diverged. After 75, interrupted and
# resumable, and after a crash the unit starts again; after `systemctl stop` it does not. A start
# may take as long as a copy to instance store does (ExecStartPre). train.py restarts a crash by
# itself as long as it gets further, so the unit sees those that it gave up on, and the OOM killer:
# the eighth within four hours is the last, which also ends a crash half an hour after each start.
#
# Only systemd knows whether it will start again. It runs ExecStopPost= after every end but says
# nothing there of its limit; OnFailure= runs once no start will follow, and so after 2, 3, and the
# last crash. For that, 75 must count as success: else `systemctl stop` would be a failure, too.
MARK = "# Run folder: "
UNIT = """\
# Written by setup_and_train.sh. Status: systemctl status {name}; log: {log}
{mark}{run_dir}
[Unit]
Description=ResNet50 training in {folder}
Wants=network-online.target
After=network-online.target dlami-nvme.service
RequiresMountsFor={mounts}
StartLimitIntervalSec=14400
StartLimitBurst=8
{on_failure}
[Service]
Type=exec
User={user}
WorkingDirectory={folder}
{environment}{before}ExecStart={command}
{after}Restart=on-failure
RestartSec=30
TimeoutStartSec=infinity
RestartPreventExitStatus=2 3
SuccessExitStatus=75
RestartForceExitStatus=75
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
FAILED_UNIT = """\
# Written by setup_and_train.sh, for --then stop-host.
[Unit]
Description=What follows a training that has failed for good
RequiresMountsFor={mounts}

[Service]
Type=oneshot
ExecStart={command}
StandardOutput=append:{log}
StandardError=inherit
"""
PROXY = re.compile("(https?|all|no)_proxy", re.IGNORECASE)
STEERING = re.compile(  # what the guide says that a unit gets
    r"(CUDA|NCCL|GLOO|OMP|PYTORCH|AWS_EC2_METADATA)_\w+|IMAGENET_DIR|LD_LIBRARY_PATH"
    # Where a bucket is, and where to find its credentials (resnet50/system/bucket_store.py).
    r"|AWS_(REGION|DEFAULT_REGION|ENDPOINT_URL(_S3)?|SKIP_SIGNATURE|PROFILE|CONFIG_FILE"
    r"|SHARED_CREDENTIALS_FILE|ROLE_ARN|WEB_IDENTITY_TOKEN_FILE|CONTAINER_\w+_(URI|FILE))"
)
SECRETS = ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def text(
    *,
    name: str,
    command: Sequence[str],
    folder: Path,
    run_dir: Path,
    log: Path,
    user: str,
    environment: Mapping[str, str] | None = None,
    before: Sequence[Sequence[str]] = (),
    after: Sequence[str] = (),
    on_failure: str = "",
) -> str:
    """The unit file.

    command: absolute path of the program and its arguments; before, after: commands, and a
    command, that run as root before each start and after each end. If they fail, training starts
    all the same.
    on_failure: the unit to start once this one has failed and will not start again.
    """
    absolute = [word for word in command if word.startswith("/")]  # environment, data, run folder
    variables = [f"{variable}={value}" for variable, value in (environment or {}).items()]
    return UNIT.format(
        name=name,
        command=join(command),
        folder=escape(str(folder)),
        log=escape(str(log)),
        mark=MARK,
        run_dir=run_dir.resolve(),
        mounts=join([str(folder), str(log.parent), *absolute]),
        user=user,
        environment="".join(f"Environment={enclose(escape(word))}\n" for word in variables),
        before="".join(f"ExecStartPre=+-{join(words)}\n" for words in before),
        after=f"ExecStopPost=+-{join(after)}\n" if after else "",
        on_failure=f"OnFailure={on_failure}\n" if on_failure else "",
    )


def failed_text(command: Sequence[str], log: Path) -> str:
    """The unit that the other one starts once it has failed for good."""
    mounts = join([str(log.parent)])
    return FAILED_UNIT.format(command=join(command), log=escape(str(log)), mounts=mounts)


def steering(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The variables that steer a run, and the names of those that stay out of the unit's file.

    Anyone on the host can read that file, and a proxy's URL may hold a password.
    """
    found, withheld = {}, [name for name in SECRETS if environ.get(name)]
    for name, value in environ.items():
        if not (PROXY.fullmatch(name) or STEERING.fullmatch(name)):
            continue
        may_hold_password = PROXY.fullmatch(name) or name.startswith("AWS_ENDPOINT")
        if value.isprintable() and not (may_hold_password and "@" in value):
            found[name] = value
        else:
            withheld.append(name)
    return found, withheld


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
    return enclose(escape(word).replace("$", "$$"))


def enclose(safe: str) -> str:
    """In quotes, where it needs them."""
    if safe and not set(safe) & set(" \t\n\"'\\;"):
        return safe
    for old, new in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        safe = safe.replace(old, new)
    return f'"{safe}"'


def escape(text: str) -> str:
    """Percent signs start specifiers (systemd.unit(5))."""
    return text.replace("%", "%%")
