"""The page of app.py as a Hugging Face Space that shows USER/NAME: a folder to push as it is.

    README.md           the Space's settings (title, Gradio's version, Python's), in YAML
    app.py, ...         the page and every module of this project that it imports, in its folder
    requirements.txt    their packages, pinned as in this project's; PyTorch for CPUs
    weights.txt         USER/NAME
    images/examples/    pictures to try

Gradio itself is not among the packages: a Space installs the version that its README.md names.
"""

import ast
import json
import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = "app"  # the module that the Space runs
WEIGHTS_FILE = "weights.txt"  # app.py reads it
BESIDE = ("resnet50/data/imagenet_classes.csv", "LICENSE")  # files that no import names
CPU_PYTORCH = "--extra-index-url https://download.pytorch.org/whl/cpu"
MODULE_NAMES = {"pillow": "PIL"}  # for packages whose module has another name
GRADIO = "gradio"
EXAMPLES = "images/examples"  # app.py shows the pictures in it
PYTHON = "3.12"
README = """---
title: {title}
emoji: 🔎
colorFrom: blue
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: {page}.py
license: mit
short_description: What a ResNet50 sees in a picture, and where
models: [{name}]
{preload}---

Upload a picture, see its five likeliest classes and where the model looked (Grad-CAM). The model
is [{name}](https://huggingface.co/{name}); the code is this folder's, under MIT (LICENSE).
{secret}"""
PRELOAD = 'preload_from_hub: ["{name} model.safetensors,config.json"]\n'
SECRET = """
The model is private: give the Space a token that may read it, as the secret HF_TOKEN in its
settings.
"""


def imports_of(path: Path) -> set[str]:
    """Dotted names that a file imports, inside functions too: modules, and names imported from
    them, which may be modules of a package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def module_file(name: str) -> Path | None:
    """The file of this project that a dotted name is imported from; None if it is no module."""
    path = REPOSITORY / f"{name.replace('.', '/')}.py"
    return path if path.is_file() else None


def files_and_packages() -> tuple[list[str], set[str]]:
    """This project's files that the page needs, relative to its folder, and the packages that all
    of them import."""
    files = set()
    packages = set()
    waiting = {module_file(PAGE)}
    while waiting:
        path = waiting.pop()
        files.add(path)
        imported = imports_of(path)
        packages |= {name.partition(".")[0] for name in imported}
        waiting |= set(filter(None, map(module_file, imported))) - files
    folders = {folder for path in files for folder in path.parents if REPOSITORY in folder.parents}
    files |= {folder / "__init__.py" for folder in folders}
    ours = {path.relative_to(REPOSITORY).parts[0].removesuffix(".py") for path in files}
    names = sorted(str(path.relative_to(REPOSITORY)) for path in files)
    return names, packages - ours - set(sys.stdlib_module_names)


def pins() -> dict[str, str]:
    """What requirements.txt pins: a package's name -> its version."""
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = (line.partition("#")[0].strip().partition("==") for line in lines)
    return {name: version for name, _, version in pinned if version}


def requirements() -> str:
    """requirements.txt of the Space."""
    _, imported = files_and_packages()
    lines = [
        f"{name}=={version}"
        for name, version in pins().items()
        if MODULE_NAMES.get(name, name) in imported and name != GRADIO
    ]
    return "\n".join([CPU_PYTORCH, *lines]) + "\n"


def readme(name: str, private: bool) -> str:
    """README.md of the Space; while it is built, the weights of a private model are unavailable."""
    return README.format(
        title=json.dumps(name.partition("/")[2]),
        gradio=pins()[GRADIO],
        python=PYTHON,
        page=PAGE,
        name=name,
        preload="" if private else PRELOAD.format(name=name),
        secret=SECRET if private else "",
    )


def write(folder: Path, name: str, private: bool) -> list[str]:
    """Write the Space of the model USER/NAME into a folder; returns the names of its files."""
    folder.mkdir(exist_ok=True)
    modules, _ = files_and_packages()
    texts = {
        "README.md": readme(name, private),
        "requirements.txt": requirements(),
        WEIGHTS_FILE: f"{name}\n",
    }
    for file in [*modules, *BESIDE]:
        texts[file] = (REPOSITORY / file).read_text(encoding="utf-8")
    for file, text in texts.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")
    pictures = [
        str(path.relative_to(REPOSITORY)) for path in sorted((REPOSITORY / EXAMPLES).glob("*.jpg"))
    ]
    (folder / EXAMPLES).mkdir(parents=True, exist_ok=True)
    for file in pictures:
        shutil.copyfile(REPOSITORY / file, folder / file)
    return [*texts, *pictures]
