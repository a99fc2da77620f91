"""The notebook: run for real on small data, twice, as someone in a clone and as someone without."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image
from support.clones import clone
from support.commands import REPOSITORY, WITH_CURVES, environment, wait_for
from support.pictures import CLASSES
from support.runs import status_of

from resnet50.records import checkpoint

NOTEBOOK = REPOSITORY / "notebooks" / "quickstart.ipynb"
CELLS = {cell.id: cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells}
CODE = {name: cell.source for name, cell in CELLS.items() if cell.cell_type == "code"}
# The scripts do the work; what else is imported shows their results.
MAY_IMPORT = {
    "json",
    "math",
    "os",
    "shlex",
    "subprocess",
    "sys",
    "importlib",
    "pathlib",
    "IPython",
    "PIL",
    "google",
    "app",
    "resnet50",
}


def client_for(folder: Path) -> NotebookClient:
    """A client that runs the notebook of a folder in that folder."""
    notebook = nbformat.read(folder / NOTEBOOK.name, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources)


def execute(folder: Path, **more: str) -> dict[str, nbformat.NotebookNode]:
    """Run all cells, and return them by id."""
    client = client_for(folder)
    variables = environment(IPYTHONDIR=str(folder / "ipython"), **WITH_CURVES, **more)
    client.execute(env=variables)
    return {cell.id: cell for cell in client.nb.cells}


def text_of(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def shown(cell: nbformat.NotebookNode, kind: str) -> list[str]:
    """What a cell displayed of a MIME type."""
    return [o.data[kind] for o in cell.outputs if kind in o.get("data", {})]


def repository(folder: Path) -> Path:
    """This working tree as a repository."""
    clone(folder)
    who = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *words], cwd=folder, env=environment(), check=True)
    return folder


def test_it_runs_in_a_clone_and_goes_on_without_one(image_folder, tmp_path, no_leftovers):
    clone, run_dir = repository(tmp_path / "clone"), tmp_path / "run"
    settings = {
        "QUICKSTART_DATA_DIR": str(image_folder),
        "QUICKSTART_RUN_DIR": str(run_dir),
        "QUICKSTART_RECIPE": "tiny",
        "QUICKSTART_LR_STEPS": "30",
        "QUICKSTART_FLAGS": "--amp=fp32 --total_batch_size=8 --log_every_s=0 --log_every_steps=1",
    }
    cells = execute(clone / "notebooks", **settings, QUICKSTART_MAX_STEPS="3")
    assert status_of(run_dir)["state"] == "done" and status_of(run_dir)["step"] == 3
    assert f"working in {clone}" in text_of(cells["code-and-packages"])
    num_pictures = {name: len(shown(cells[name], "image/png")) for name in CODE}
    assert {name: count for name, count in num_pictures.items() if count} == {
        "learning-rate": 1,
        "curves": 1,
        "mistakes": 3,
        "pictures": 4,
    }
    assert "top-5" in shown(cells["curves"], "text/markdown")[0]
    tables = shown(cells["pictures"], "text/markdown")
    assert len(tables) == 4
    for table in tables:  # three classes, where there are no five
        assert set(re.findall(r"^\| (\w+) \| \d+\.\d \|$", table, re.MULTILINE)) == set(CLASSES)
    max_lr = json.loads((run_dir / "max_lr.json").read_text())["max_lr"]
    assert json.loads((run_dir / "config.json").read_text())["settings"]["max_lr"] == max_lr
    assert not list(clone.glob("runs/*"))

    # Someone else's notebook, alone in a folder: it clones, keeps the rate and trains the rest.
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(NOTEBOOK, alone)
    cells = execute(alone, **settings, QUICKSTART_REPO=str(clone))
    assert f"working in {alone / 'ResNet50_ImageNet1K_Training'}" in text_of(
        cells["code-and-packages"]
    )
    assert "range test" not in text_of(cells["learning-rate"])
    assert "step 4/" in text_of(cells["training"]) and "step 3/" not in text_of(cells["training"])
    assert status_of(run_dir)["state"] == "done" and status_of(run_dir)["step"] == 16


def test_the_stop_button_saves(image_folder, tmp_path, no_leftovers):
    clone, run_dir = repository(tmp_path / "clone"), tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "max_lr.json").write_text('{"max_lr": 0.01}')  # so that it takes no time to find
    (run_dir / "lr_finder").mkdir()
    Image.new("RGB", (8, 8)).save(run_dir / "lr_finder" / "mid_range.png")
    (run_dir / "lr_finder" / "result.json").write_text('{"max_lr": 0.01, "suggestions": {}}')
    settings = {
        "QUICKSTART_DATA_DIR": str(image_folder),
        "QUICKSTART_RUN_DIR": str(run_dir),
        "QUICKSTART_RECIPE": "tiny",
        "QUICKSTART_FLAGS": "--epochs=10000",
    }
    client = client_for(clone / "notebooks")

    def press_stop() -> None:
        wait_for(lambda: status_of(run_dir).get("step"), what="the first epochs")
        os.killpg(client.km.provisioner.pgid, signal.SIGINT)  # as Jupyter's interrupt_kernel does

    presser = threading.Thread(target=press_stop)
    presser.start()
    with pytest.raises(CellExecutionError, match="run this cell again and it goes on"):
        client.execute(env=environment(IPYTHONDIR=str(tmp_path / "ipython"), **settings))
    presser.join()
    assert status_of(run_dir)["state"] == "interrupted"
    assert checkpoint.newest_step(run_dir / "checkpoints") == status_of(run_dir)["step"]


def test_a_script_that_fails_stops_the_notebook(capsys):
    names: dict = {}
    exec(CODE["settings"], names)
    names["run"](sys.executable, "-c", "print('all is well')")
    assert capsys.readouterr().out == "all is well\n"
    with pytest.raises(RuntimeError, match="ended with exit code 3: see above"):
        names["run"](sys.executable, "-c", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="run this cell again and it goes on"):
        names["run"](sys.executable, "-c", "raise SystemExit(75)")


def test_each_data_set_has_its_recipe(monkeypatch):
    for data, recipe in {
        "fashion-mnist": "demo",
        "tiny-imagenet": "tiny-imagenet",
        "imagenette-160": "imagenette",
    }.items():
        monkeypatch.setenv("QUICKSTART_DATA", data)
        names: dict = {}
        exec(CODE["settings"], names)
        assert (names["RECIPE"], names["RUN_DIR"]) == (recipe, f"runs/quickstart-{data}-{recipe}")


def test_without_a_clone_and_an_address_it_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(CODE["settings"], names)
    with pytest.raises(ValueError, match="set REPO to the repository's address"):
        exec(CODE["code-and-packages"], names)


def test_it_is_committed_clean():
    raw = json.loads(NOTEBOOK.read_text())
    assert (raw["nbformat"], raw["nbformat_minor"]) == (4, 5)
    assert raw["metadata"]["kernelspec"]["name"] == "python3"
    assert len(CELLS) == len(raw["cells"])  # ids are different
    for cell in raw["cells"]:
        assert re.fullmatch(r"[a-z-]+", cell["id"]) and not cell["metadata"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("name", CODE)
def test_a_cell_only_calls_what_is_there(name):
    for node in ast.walk(ast.parse(CODE[name])):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {module.partition(".")[0] for module in modules} <= MAY_IMPORT
        assert not isinstance(node, ast.ClassDef)
    for script in re.findall(r'"(\w+\.py)"', CODE[name]):
        assert (REPOSITORY / script).is_file()
