"""The page of app.py as a Hugging Face Space that shows USER/NAME: a folder to push as it is.

    README.md           the Space's settings (title, Gradio's version, Python's), in YAML
    app.py, ...         the page and every module of this project that it imports
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

HERE = Path(__file__).resolve().parent
PAGE = "app"  # the module that the Space runs
WEIGHTS_FILE = "weights.txt"  # app.py reads it
BESIDE = ("imagenet_classes.csv", "LICENSE")  # files that no import names
CPU_PYTORCH = "--extra-index-url https://download.pytorch.org/whl/cpu"
MODULE_NAMES = {"pillow": "PIL"}  # where a package's module is called otherwise
GRADIO = "gradio"
EXAMPLES = "images/examples"  # app.py shows what lies there
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

A picture in, five classes with confidences and what the model looked at out (Grad-CAM). The model
is [{name}](https://huggingface.co/{name}); the code is this folder's, under MIT (LICENSE).
{secret}"""
PRELOAD = 'preload_from_hub: ["{name} model.safetensors,config.json"]\n'
SECRET = """
The model is private: give the Space a token that may read it, as the secret HF_TOKEN in its
settings.
"""


def imports_of(path: Path) -> set[str]:
    """Names of the modules and packages that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def modules_and_packages() -> tuple[list[str], set[str]]:
    """This project's modules that the page needs, and the packages that all of them import."""
    modules, packages, waiting = set(), set(), {PAGE}
    while waiting:
        name = waiting.pop()
        modules.add(name)
        imported = imports_of(HERE / f"{name}.py")
        ours = {other for other in imported if (HERE / f"{other}.py").is_file()}
        packages |= imported - ours - set(sys.stdlib_module_names)
        waiting |= ours - modules
    return sorted(modules), packages


def pins() -> dict[str, str]:
    """What requirements.txt pins: a package's name -> its version."""
    lines = (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = (line.partition("#")[0].strip().partition("==") for line in lines)
    return {name: version for name, _, version in pinned if version}


def requirements() -> str:
    """requirements.txt of the Space."""
    _, imported = modules_and_packages()
    lines = [
        f"{name}=={version}"
        for name, version in pins().items()
        if MODULE_NAMES.get(name, name) in imported and name != GRADIO
    ]
    return "\n".join([CPU_PYTORCH, *lines]) + "\n"


def readme(name: str, private: bool) -> str:
    """README.md of the Space; the weights of a private model are not there while it is built."""
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
    """Write the Space of the model USER/NAME into a folder; the names of its files."""
    folder.mkdir(exist_ok=True)
    modules, _ = modules_and_packages()
    texts = {
        "README.md": readme(name, private),
        "requirements.txt": requirements(),
        WEIGHTS_FILE: f"{name}\n",
    }
    for file in [*(f"{module}.py" for module in modules), *BESIDE]:
        texts[file] = (HERE / file).read_text(encoding="utf-8")
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
    pictures = [str(path.relative_to(HERE)) for path in sorted((HERE / EXAMPLES).glob("*.jpg"))]
    (folder / EXAMPLES).mkdir(parents=True, exist_ok=True)
    for file in pictures:
        shutil.copyfile(HERE / file, folder / file)
    return [*texts, *pictures]
