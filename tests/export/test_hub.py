"""What export.py --hub sends to Hugging Face arrives whole, and nothing else does: huggingface_hub
itself, against a stub of the Hub on this machine."""

import importlib.metadata
import json
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from gradio_client import Client, handle_file
from huggingface_hub import ModelCard
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from support import hub as hub_stub
from support.commands import (
    ONE_RANK,
    REPOSITORY,
    WITH_CURVES,
    run,
    start,
    tiny_flags,
    train_words,
    wait_for,
)
from support.hub import TOKEN, Hub
from support.pictures import CLASSES, make_picture

import export
from resnet50.export import comparison
from resnet50.inference import pretrained

PLANTED, OF_THE_RUN = "hf_" + "Planted" * 5, ("curves.png", "metrics.csv", "metrics.md")
SECRET = "no-shape-but-in-a-variable"
MODEL_FILES = {
    "model.safetensors",
    "model.onnx",
    "model_int8.onnx",
    "config.json",
    "README.md",
    "recipe.json",
    *OF_THE_RUN,
}
MODULES = {
    "": {"__init__"},
    "config": {"__init__", "command_line", "habits"},
    "data": {
        *("__init__", "batch", "class_names", "class_order", "orientation", "sampling"),
        "transforms",
    },
    "inference": {"__init__", "grad_cam", "pretrained", "uploads"},
    "records": {
        "__init__",
        "checkpoint",
        "foreign_keys",
        "model_folders",
        "tensor_checks",
        "weight_files",
        "weights",
    },
    "system": {"__init__", "files", "preflight"},
}
SPACE_FILES = {
    "README.md",
    "requirements.txt",
    "weights.txt",
    "LICENSE",
    "app.py",
    "dataset_paths.py",
    "model.py",
    "resnet50/data/imagenet_classes.csv",
    *(str(Path("resnet50", room, f"{name}.py")) for room in MODULES for name in MODULES[room]),
    *(f"images/examples/{name}.jpg" for name in ("pants", "shoes", "t-shirt")),
}
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}  # of the Hub
QUICK = ["--num_rounds=1", "--batch_size=4"]


@pytest.fixture(scope="module")
def run_dir(image_folder, tmp_path_factory) -> Path:
    """A finished run, with tokens lying in its folder."""
    run_dir = tmp_path_factory.mktemp("done") / "run"
    flags = [*tiny_flags(image_folder, run_dir), "--epochs=6", "--save_every_steps=0"]
    result = run(train_words(*flags), run_dir.parent, **ONE_RANK, **WITH_CURVES)
    assert result.code == 0, result.err
    for name in (".env", "token"):
        (run_dir / name).write_text(f"HF_TOKEN={PLANTED}\n")
    return run_dir


@pytest.fixture(scope="module")
def pushed(run_dir, image_folder, tmp_path_factory) -> Iterator[tuple[Hub, Path, str]]:
    """The stub after the command, OUT, what was printed. OUT had tokens and a checkpoint in it, the
    repository files of an earlier model."""
    folder = tmp_path_factory.mktemp("pushed")
    (folder / "out" / "space").mkdir(parents=True)
    for place in ("out", "out/space"):
        for name in (".env", "token", "notes.txt"):
            (folder / place / name).write_text(f"HF_TOKEN={PLANTED}\n")
        shutil.copy(run_dir / "checkpoints" / "best.pt", folder / place / "best.pt")
    words = [sys.executable, REPOSITORY / "export.py", f"--weights={run_dir}", "--hub=me/mine"]
    words += [f"--out={folder}/out", f"--data_dir={image_folder}", "--num_calibration=30", *QUICK]
    with hub_stub.serve() as hub:
        hub.files["models"]["me/mine"] = {"model.engine": b"old", "theirs.md": b"kept"}
        hub.files["spaces"]["me/mine"] = {"model.safetensors": b"old"}
        variables = hub.environment(folder / "home") | {"MY_SECRET": SECRET}
        result = run(words, folder, **variables)
        assert result.code == 0, result.out + result.err
        yield hub, folder / "out", result.out


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """The stub, with huggingface_hub in this process pointed at it."""
    with hub_stub.serve() as stub:
        point_to(stub.address, monkeypatch, tmp_path)
        disable_progress_bars()
        yield stub
        enable_progress_bars()


def point_to(address: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """What HF_ENDPOINT and others do before huggingface_hub is imported."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    pattern = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}{pattern}")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no_token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(folder / "no_tokens"))


def words_for(weights: Path, out: Path, *more: str) -> list[str]:
    return [f"--weights={weights}", f"--out={out}", "--hub=me/mine", *QUICK, *more]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str], *texts: str) -> None:
    """main() returns 2 and says why in one line."""
    assert export.main(argv) == 2
    *_, line = capsys.readouterr().err.splitlines()  # after a note on weights without a sha256
    assert line.startswith("export.py: error: ") and all(text in line for text in texts), line


def front_matter(text: bytes) -> dict:
    return yaml.safe_load(text.decode().split("---\n")[1])


def test_repository_and_space_arrive_as_they_lie_here(pushed):
    hub, out, said = pushed
    model, space = hub.files["models"]["me/mine"], hub.files["spaces"]["me/mine"]
    assert model.pop("theirs.md") == b"kept", "only names of ours are deleted"
    assert model.keys() == MODEL_FILES and space.keys() == SPACE_FILES
    for files, folder in ((model, out), (space, out / "space")):
        for name, content in files.items():
            assert content == (folder / name).read_bytes(), name
            assert f"bytes  {name}\n" in said
    model["theirs.md"] = b"kept"
    assert [made.get("sdk") for made in hub.created] == [None, "gradio"]
    assert [(made["organization"], made["name"]) for made in hub.created] == [("me", "mine")] * 2
    assert said.endswith(f"model: {hub.address}/me/mine\nspace: {hub.address}/spaces/me/mine\n")


def test_the_weights_that_arrived_give_the_same_logits(pushed, run_dir, tmp_path):
    hub, _, _ = pushed
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(hub.files["models"]["me/mine"][name])
    images = comparison.noise(32, 3)
    expected = pretrained.load(str(run_dir))
    found = pretrained.load(str(tmp_path))
    assert torch.equal(found.model(images), expected.model(images))
    assert found.about == expected.about and found.folders == list(CLASSES)


def test_the_card_is_one_of_the_hubs_and_has_the_runs_figures(pushed, run_dir):
    hub, _, _ = pushed
    files = hub.files["models"]["me/mine"]
    card, about = ModelCard(files["README.md"].decode()), pretrained.load(str(run_dir)).about
    assert card.data.license == "mit" and card.data.pipeline_tag == "image-classification"
    assert card.data.library_name == "pytorch" and card.data.datasets is None  # neither is theirs
    top1, top5 = card.data.eval_results
    assert (
        top1.metric_value == pytest.approx(about["top1"], abs=1e-3) and "Top-1" in top1.metric_name
    )
    assert (
        top5.metric_value == pytest.approx(about["top5"], abs=1e-3) and "Top-5" in top5.metric_name
    )
    assert top1.dataset_name == about["data"]
    for text in (
        "ResNet14 for the 3 classes",
        "](curves.png)",
        "| model_int8.onnx |",
        "| ema_decay | 0.9 |",
        "| max_lr | 0.05 |",
        f"commit `{about['commit']}`",
        '"me/mine", "model.onnx"',
        "MIT",
        "3: ant, bee, cat;",
    ):
        assert text in card.text, text
    recipe = json.loads(files["recipe.json"])
    assert recipe["ema_decay"] == 0.9 and recipe["layers"] == [1, 1, 1, 1]
    assert not recipe.keys() & {"data_dir", "run_dir", "num_workers"}
    for name in OF_THE_RUN:
        assert files[name] == (run_dir / name).read_bytes()


def test_the_spaces_settings_are_what_the_hub_takes(pushed):
    hub, _, _ = pushed
    files = hub.files["spaces"]["me/mine"]
    found = front_matter(files["README.md"])
    assert found["title"] == "mine" and found["sdk"] == "gradio" and found["license"] == "mit"
    assert found["sdk_version"] == importlib.metadata.version("gradio")
    assert found["python_version"] == "3.12" and found["app_file"] in files
    assert {found["colorFrom"], found["colorTo"]} <= COLORS
    assert len(found["short_description"]) <= 60 and found["models"] == ["me/mine"]
    assert found["preload_from_hub"] == ["me/mine model.safetensors,config.json"]
    index, *lines = files["requirements.txt"].decode().splitlines()
    assert index == "--extra-index-url https://download.pytorch.org/whl/cpu"
    pinned = (REPOSITORY / "requirements.txt").read_text()
    assert all(line in pinned for line in lines) and not any("gradio" in line for line in lines)
    assert {line.partition("==")[0] for line in lines} >= {"torch", "pillow", "safetensors"}


def test_no_token_no_optimizer_state_and_no_path_arrives(pushed, run_dir, image_folder):
    hub, out, _ = pushed
    arrived = [*hub.bodies]
    for repositories in hub.files.values():
        arrived += [content for files in repositories.values() for content in files.values()]
    everything = b"\0".join(arrived)
    state = torch.load(run_dir / "checkpoints" / "best.pt", weights_only=True)
    momentum = next(iter(state["optimizer"]["state"].values()))["momentum_buffer"]
    assert state["ema"]["conv1.weight"].numpy().tobytes() in everything, "the weights do arrive"
    assert momentum.contiguous().numpy().tobytes() not in everything
    assert state["model"]["conv1.weight"].contiguous().numpy().tobytes() not in everything
    secrets = (TOKEN, PLANTED, SECRET, "HF_TOKEN=")
    places = (run_dir, image_folder, out, REPOSITORY, Path.home(), sys.prefix, "/checkpoints")
    for unwanted in (*secrets, *places):
        assert str(unwanted).encode() not in everything, unwanted


def test_the_space_runs_alone_and_gets_its_model_from_the_hub(pushed, tmp_path):
    hub, _, _ = pushed
    for name, content in hub.files["spaces"]["me/mine"].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    make_picture(1, 0).save(tmp_path / "picture.png")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    said, variables = tmp_path / "said", hub.environment(tmp_path / "home")
    with open(said, "w") as out:
        process = start([sys.executable, "app.py", "--port", port], tmp_path, out, **variables)
    try:
        wait_for(lambda: "the page is at" in said.read_text() or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        client = Client(f"http://127.0.0.1:{port}", verbose=False, download_files=str(tmp_path))
        answer, heat_map = client.predict(
            handle_file(tmp_path / "picture.png"), api_name="/classify"
        )
        client.close()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert {item["label"] for item in answer["confidences"]} == set(CLASSES)
    assert Path(heat_map).stat().st_size > 1000
    assert "GET /me/mine/resolve/main/model.safetensors" in hub.requests


def test_a_dry_run_asks_nobody_and_writes_all(hub, run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    words = words_for(run_dir, tmp_path / "out", "--formats=safetensors", "--dry-run", "--private")
    assert export.main(words) == 0
    said = capsys.readouterr().out
    assert hub.requests == [] and "nothing was sent (--dry_run)" in said
    assert f"would go to {hub.address}/me/mine (private)" in said
    assert f"would go to {hub.address}/spaces/me/mine (private)" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == MODEL_FILES - {"model.onnx", "model_int8.onnx"} | {"space"}
    space = tmp_path / "out" / "space"
    written = {str(path.relative_to(space)) for path in space.rglob("*") if path.is_file()}
    assert written == SPACE_FILES
    text = (tmp_path / "out" / "space" / "README.md").read_bytes()
    assert b"secret HF_TOKEN" in text and "preload_from_hub" not in front_matter(text)


@pytest.mark.parametrize(
    "text, what",
    [
        (PLANTED, "what looks like a token"),
        ("AKIA" + "ABCD" * 4, "what looks like a token"),
        (SECRET, "the value of MY_SECRET"),
        ("{run_dir}", "a path of this machine"),
        ("see {home}/notes", "a path of this machine"),
    ],
)
def test_what_would_leak_through_the_settings_is_not_sent(
    hub, run_dir, tmp_path, monkeypatch, capsys, text, what
):
    """It is in the run's settings, and so would get into recipe.json and the card."""
    monkeypatch.setenv("MY_SECRET", SECRET)
    state = torch.load(run_dir / "checkpoints" / "best.pt", weights_only=True)
    state["config"]["optimizer"] = text.format(run_dir=run_dir, home=Path.home())
    torch.save(state, tmp_path / "planted.pt")
    words = words_for(tmp_path / "planted.pt", tmp_path / "out", "--formats=safetensors")
    refused(words, capsys, f"{tmp_path}/out/README.md holds {what}", "nothing was sent")
    (tmp_path / "out" / "README.md").unlink()
    assert state["config"]["optimizer"] in (tmp_path / "out" / "recipe.json").read_text()
    assert "GET /api/whoami-v2" in hub.requests
    assert all(request.startswith("GET ") for request in hub.requests) and not any(hub.bodies)


def test_mistakes_are_told_before_the_export(hub, run_dir, tmp_path, monkeypatch, capsys):
    def check(words: list[str], *texts: str) -> None:
        refused([f"--weights={run_dir}", f"--out={tmp_path}/out", *words], capsys, *texts)
        assert not (tmp_path / "out").exists() and hub.created == []

    check(["--hub=mine"], "--hub mine: must be USER/NAME")
    check(["--hub=a/b/c"], "--hub: Repo id must be in the form")
    check(["--hub=me/mi ne"], "--hub: Repo id must use alphanumeric")
    check(["--private"], "--private needs --hub USER/NAME")
    check(["--dry_run"], "--dry_run needs --hub USER/NAME")
    check(["--hub=me/mine", "--formats=onnx"], "--formats must include safetensors")
    hub.refuse["GET /api/whoami-v2"] = 401
    check(
        ["--hub=me/mine"],
        "Hugging Face answers 401: the token is not valid",
        "hf auth login",
    )
    monkeypatch.delenv("HF_TOKEN")
    check(["--hub=me/mine"], "no token", "hf auth login", "HF_TOKEN")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    check(["--hub=me/mine"], "--hub me/mine: needs a package: pip install huggingface_hub")


def test_no_network_is_told_at_once(run_dir, tmp_path, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        closed = probe.getsockname()[1]
    point_to(f"http://127.0.0.1:{closed}", monkeypatch, tmp_path)
    start_s = time.monotonic()
    refused(words_for(run_dir, tmp_path / "out"), capsys, "Hugging Face cannot be reached")
    assert time.monotonic() - start_s < 10 and not (tmp_path / "out").exists()


def test_a_hub_that_says_no_while_sending_costs_one_line(hub, run_dir, tmp_path, capsys):
    words = words_for(run_dir, tmp_path / "out", "--formats=safetensors")
    hub.refuse["POST /api"] = 403
    refused(
        words,
        capsys,
        "Hugging Face answers 403: the token may not write there",
        "refused by the stub",
    )
    hub.refuse = {"POST /api/repos": 401, "GET /api/models": 401}
    refused(words, capsys, "Hugging Face answers 401: the token is not valid")
    hub.refuse = {}
    refused([*words, "--private"], capsys, f"{hub.address}/me/mine exists already, and is public")
    assert hub.files == {"models": {}, "spaces": {}}
    hub.refuse = {"POST /api/spaces": 402}
    refused(words, capsys, "Hugging Face answers 402: this needs a paid")
    assert hub.files["models"]["me/mine"] and not hub.files["spaces"]


def test_a_model_that_was_downloaded_loads_without_a_network(
    pushed, hub, tmp_path, monkeypatch, capsys
):
    hub.files["models"] = pushed[0].files["models"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    first = pretrained.load("me/mine")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    point_to(closed, monkeypatch, tmp_path)
    start_s = time.monotonic()
    images = comparison.noise(32, 3)
    assert torch.equal(pretrained.load("me/mine").model(images), first.model(images))
    with pytest.raises(
        ValueError, match="--weights me/other: cannot be downloaded from Hugging Face: "
    ):
        pretrained.load("me/other")
    assert time.monotonic() - start_s < 10


def test_raw_weights_do_not_carry_the_figures_of_the_average(run_dir):
    both = [pretrained.load(str(run_dir), raw).about for raw in (False, True)]
    assert "top1" in both[0] and "top1" not in both[1] and both[1]["epochs"] == both[0]["epochs"]
