"""A model on the Hugging Face Hub: what goes there, what must not, and the upload.

    USER/NAME          the files that export.py wrote, with README.md (the card), recipe.json, and
                       curves.png, metrics.md, metrics.csv of the run
    Space USER/NAME    OUT/space, the page of app.py for that model (space.py)

Files are sent by name, only those that were written for it, whatever else is in the folder; and
only after all of them were searched for tokens and for paths of this machine.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet50.export import formats as export_formats
from resnet50.export import model_card, space
from resnet50.export.formats import FILES, SAFETENSORS
from resnet50.inference import pretrained
from resnet50.inference.pretrained import Pretrained
from resnet50.records import run_folder

CARD, RECIPE = "README.md", "recipe.json"
OF_THE_RUN = ("curves.png", "metrics.md", "metrics.csv")
# All that a model's repository may get; in a Space, weights would take precedence over weights.txt.
EVERY_FILE = (*FILES.values(), pretrained.CONFIG, CARD, RECIPE, *OF_THE_RUN)
SPACE_DIR = "space"  # in --out
# The usual shapes: Hugging Face, AWS, GitHub, OpenSSL.
TOKEN = re.compile(
    rb"hf_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
SECRET_VARIABLE = re.compile("TOKEN|SECRET|KEY|PASSWORD")
MIN_SECRET_LENGTH = 8  # shorter values of such variables are switches and numbers
REMEDIES = {
    401: "the token is not valid: get a new one with `hf auth login` or set HF_TOKEN",
    402: "this needs a paid account, as a Space with Gradio does for some users",
    403: "the token may not write there: it needs write permission, and USER must be your account",
}


@dataclass(frozen=True)
class Target:
    """Where to publish (USER/NAME), for whom, and whether to send it. name: None for nowhere."""

    name: str | None
    private: bool
    dry_run: bool


@dataclass(frozen=True)
class Shipment:
    """What goes into one repository. kind: "model" or "space"; files: names in the folder."""

    kind: str
    folder: Path
    files: Sequence[str]


def check(target: Target, formats: Sequence[str]) -> None:
    """Raise ValueError for what would fail after the export: the flags, the package, the token.

    Asks the Hub whose token it is, unless it is a dry run.
    """
    name = target.name
    if name is None:
        for flag, is_given in (("--private", target.private), ("--dry_run", target.dry_run)):
            if is_given:
                raise ValueError(f"{flag} needs --hub USER/NAME")
        return
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError:
        message = "needs a package: pip install huggingface_hub"
        raise ValueError(f"--hub {name}: {message}") from None
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"--hub: {one_line(error)}") from None
    if not pretrained.HUB_NAME.fullmatch(name):
        raise ValueError(f"--hub {name}: must be USER/NAME")
    if SAFETENSORS not in formats:
        raise ValueError(f"--hub {name}: --formats must include {SAFETENSORS}, which users load")
    if target.dry_run:
        return
    with one_line_errors(name):
        if get_token() is None:
            raise ValueError(
                "no token: run `hf auth login`, or set HF_TOKEN to one that may write "
                "(https://huggingface.co/settings/tokens)"
            )
        HfApi().whoami()


def one_line(error: Exception) -> str:
    """An error's text without its line breaks."""
    return " ".join(str(error).split()) or repr(error)


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn errors of the Hub or the network into a ValueError of one line."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = "; ".join(filter(None, [REMEDIES.get(status), one_line(error)]))
        reason = f"Hugging Face answers {status}: {reason}"
        raise ValueError(f"--hub {name}: {reason}") from error
    except (HTTPError, ConnectionError) as error:
        reason = f"Hugging Face cannot be reached: {one_line(error)}"
        raise ValueError(f"--hub {name}: {reason}") from error
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: its uploader, hf_xet
        raise ValueError(f"--hub {name}: {one_line(error)}") from error


def run_of(source: str) -> Path | None:
    """The run folder that --weights names, or that its checkpoint is in; None without one."""
    path = Path(source)
    if path.parent.name == run_folder.checkpoints_dir(path).name:
        path = path.parents[1]
    return path if run_folder.checkpoints_dir(path).is_dir() else None


def write_beside(
    name: str, source: str, out: Path, loaded: Pretrained, result: Mapping
) -> list[str]:
    """Write the card and its files beside the exported ones; returns the names of all of them."""
    exported = [str(row["model"]) for row in result["models"][1:]]  # the first is PyTorch's
    files = [*exported, pretrained.CONFIG, CARD]
    run_dir = run_of(source)
    for file in OF_THE_RUN if run_dir else ():
        if (run_dir / file).is_file():
            shutil.copyfile(run_dir / file, out / file)
            files.append(file)
    if loaded.settings:
        (out / RECIPE).write_text(model_card.recipe_json(loaded.settings), encoding="utf-8")
        files.append(RECIPE)
    config = export_formats.config_of(loaded)
    (out / CARD).write_text(model_card.card(name, loaded, config, result, files), encoding="utf-8")
    return files


def paths_of(loaded: Pretrained, places: Sequence[Path | str | None]) -> set[str]:
    """Absolute paths of this machine, and of the one that trained, that must not be published."""
    known = [loaded.settings.get(key) for key in ("data_dir", "run_dir", "init_from")]
    paths = [Path(str(place)) for place in (*places, *known) if place]
    paths += [Path.home(), space.REPOSITORY]
    return {str(form) for path in paths for form in (path.absolute(), path.resolve())} - {"/"}


def secrets() -> dict[str, re.Pattern[bytes]]:
    """What no file may hold, by description: tokens, and values of secret variables."""
    values = {
        f"the value of {key}": re.compile(re.escape(value.strip().encode()))
        for key, value in os.environ.items()
        if SECRET_VARIABLE.search(key.upper()) and len(value.strip()) >= MIN_SECRET_LENGTH
    }
    return {"what looks like a token": TOKEN, **values}


def check_contents(name: str, shipments: Sequence[Shipment], paths: set[str]) -> None:
    """Raise ValueError naming the first file that holds a secret or a path of this machine."""
    unwanted = secrets()
    for path in sorted(paths):  # matched as a whole: not the /data of https://host/data
        whole = rb"(?<![\w.-])" + re.escape(path.encode()) + rb"(?![\w-])"
        unwanted[f"a path of this machine, {path}"] = re.compile(whole)
    for shipment in shipments:
        for file in shipment.files:
            content = (shipment.folder / file).read_bytes()
            for what, pattern in unwanted.items():
                if pattern.search(content):
                    where = f"--hub {name}: {shipment.folder / file}"
                    raise ValueError(f"{where} holds {what}; nothing was sent")


def address(name: str, kind: str) -> str:
    """The web address of a repository."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'spaces/' if kind == 'space' else ''}{name}"


def send(name: str, shipment: Shipment, private: bool) -> None:
    """Create the repository if it is missing, send the files, and delete what an earlier model left
    there under our file names. Raises ValueError."""
    from huggingface_hub import HfApi

    api = HfApi()
    kind = shipment.kind
    sdk = "gradio" if kind == "space" else None
    with one_line_errors(name):
        api.create_repo(name, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk)
        if private and not api.repo_info(name, repo_type=kind).private:
            raise ValueError(
                f"{address(name, kind)} exists already, and is public: make it private in its "
                "settings, leave --private out, or give another name"
            )
        api.upload_folder(
            repo_id=name,
            repo_type=kind,
            folder_path=shipment.folder,
            allow_patterns=list(shipment.files),
            delete_patterns=[file for file in EVERY_FILE if file not in shipment.files],
            commit_message=f"{kind} by export.py",
        )


def publish(
    target: Target, loaded: Pretrained, result: Mapping, places: Sequence[Path | str | None]
) -> None:
    """Write card and Space beside the export, check and list all files, and send them unless it is
    a dry run. Raises ValueError.

    result: what export.py found; places: paths that no file may name.
    """
    name, private, dry_run = target.name, target.private, target.dry_run
    source, out = str(result["weights"]), Path(str(result["out"]))
    files = write_beside(name, source, out, loaded, result)
    space_files = space.write(out / SPACE_DIR, name, private)
    shipments = [Shipment("model", out, files), Shipment("space", out / SPACE_DIR, space_files)]
    check_contents(name, shipments, paths_of(loaded, [*places, run_of(source)]))
    for shipment in shipments:
        verb, access = "would go" if dry_run else "go", "private" if private else "public"
        print(f"\nfiles that {verb} to {address(name, shipment.kind)} ({access}):")
        for file in shipment.files:
            print(f"{(shipment.folder / file).stat().st_size:>14,} bytes  {file}")
    if dry_run:
        print("\nnothing was sent (--dry_run)")
        return
    for shipment in shipments:
        send(name, shipment, private)
        print(f"{shipment.kind}: {address(name, shipment.kind)}", flush=True)
