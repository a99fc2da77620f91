"""The page as a Space runs it: queried by programs and by a browser, and given all kinds of files.

The browser's tests need Debian's chromium and chromium-driver, and selenium.
"""

import io
import json
import random
import re
import shutil
import signal
import socket
import sys
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import app_screenshots
import httpx
import huggingface_hub
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from PIL import Image
from safetensors.torch import save_file
from support.commands import REPOSITORY, start, wait_for
from support.needs import needs
from support.pictures import make_picture

import app
from model import ResNet
from resnet50.export import space as space_files
from resnet50.inference import pretrained, uploads
from resnet50.records import checkpoint

NAMES = [
    "ant",
    "bee",
    "ant",
    "n01440764",
    "shoes",
    "eel",
    "fox",
]  # one twice, one of ImageNet's ids
SHOWN_NAMES = ["ant (0)", "bee", "ant (2)", "tench", "shoes", "eel", "fox"]
ABOUT = {"recipe": "rsb_a3", "epochs": 100.0, "top1": 78.124, "top5": 93.7, "hours": 7.5}
MAX_MB = 4

needs_browser = needs("chromium", "chromedriver")


def random_weights(num_classes: int = len(NAMES)) -> dict[str, torch.Tensor]:
    """The weights of a tiny network whose answers differ from picture to picture."""
    torch.manual_seed(3)
    model = ResNet((1, 1, 1, 1), 8, num_classes, zero_init_gamma=False)
    torch.nn.init.normal_(model.fc.weight, std=0.2)
    return model.state_dict()


def write_export(folder: Path, weights: dict[str, torch.Tensor], **config: object) -> Path:
    """A folder such as export.py writes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    training = {"image_size": 64, "resize_size": 72, "kind": "EMA", "about": ABOUT}
    config = {"label_names": NAMES, "training": training, **config}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def bytes_of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(kind: str = "JPEG") -> bytes:
    """A picture of 400 x 300 pixels, encoded."""
    return bytes_of(make_picture(1, 0).resize((400, 300)), kind)


@pytest.fixture(scope="module")
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Path:
    """The folder of a Space: the page's files and weights, nothing else."""
    folder = write_export(tmp_path_factory.mktemp("space"), random_weights())
    files, _ = space_files.files_and_packages()
    for name in [*files, *space_files.BESIDE]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    shutil.copytree(REPOSITORY / "images/examples", folder / "images/examples")
    return folder


@pytest.fixture(scope="module")
def page(space, free_port) -> Iterator[str]:
    """The address of the page, which must still run at the end and have logged no error."""
    words = [sys.executable, "app.py", "--port", free_port, "--max-mb", MAX_MB]
    with open(space / "out", "w") as out:
        process = start(words, space, stdout=out, GRADIO_TEMP_DIR=str(space / "cache"))
    said = space / "out"
    try:
        wait_for(lambda: "the page is at" in said.read_text() or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        yield re.search(r"http://\S+?(?=/ )", said.read_text())[0]
        assert process.poll() is None, "the page has died"
        assert httpx.get(f"http://127.0.0.1:{free_port}/").status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    # Gradio logs what it refuses itself; nothing of ours may fail.
    assert not re.search(
        r'/(app|uploads|grad_cam|pretrained|transforms|model|rgb)\.py", line', err
    ), err
    assert process.returncode == 0


@pytest.fixture(scope="module")
def client(page, tmp_path_factory) -> Client:
    return Client(page, verbose=False, download_files=str(tmp_path_factory.mktemp("got")))


def ask(client: Client, path: Path) -> tuple[dict[str, float], Path]:
    """The classes and the file of the heat map."""
    answer, heat_map = client.predict(handle_file(str(path)), api_name="/classify")
    return {row["label"]: row["confidence"] for row in answer["confidences"]}, Path(heat_map)


def test_programs_get_five_classes_with_the_models_own_confidences(client, space, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(photo())
    classes, heat_map = ask(client, tmp_path / "photo.jpg")
    loaded = pretrained.load(str(space))
    with Image.open(tmp_path / "photo.jpg") as picture, torch.inference_mode():
        probabilities = loaded.model(loaded.pixels(picture))[0].softmax(dim=0)
    expected = probabilities.sort(descending=True)
    assert list(classes) == [SHOWN_NAMES[label] for label in expected.indices[:5]]
    assert list(classes.values()) == pytest.approx(expected.values[:5].tolist(), abs=1e-5)
    with Image.open(heat_map) as shown:
        assert shown.size == (448, 448)


def test_both_classes_of_one_name_are_shown(client, space, tmp_path):
    loaded, found = pretrained.load(str(space)), set()
    assert loaded.classes == SHOWN_NAMES
    for seed in range(8):
        found |= app.predict(loaded, make_picture(seed, seed % 3))[0].keys()
    assert found <= set(SHOWN_NAMES) and {"ant (0)", "ant (2)", "tench"} & found


def test_the_way_the_camera_was_held_is_respected(client, tmp_path):
    upright = make_picture(5, 1).resize((240, 180))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png")
    names = ("upright", "turned", "lying")
    answers = [ask(client, tmp_path / f"{name}.png")[0] for name in names]
    assert answers[0] == answers[1] != answers[2]


BAD_FILES = {
    "text.jpg": (lambda: b"I am not a picture\n" * 99, "not a picture of a known kind"),
    "empty.jpg": (lambda: b"", "This file is empty"),
    "large.png": (
        lambda: bytes_of(Image.new("1", (10_000, 10_000)), "PNG"),
        "more than 64 megapixels",
    ),
    "huge.png": (
        lambda: bytes_of(Image.new("1", (20_000, 20_000)), "PNG"),
        "more than 64 megapixels",
    ),
    "strip.png": (lambda: bytes_of(Image.new("L", (20_000, 9)), "PNG"), "100 times as long"),
    "cut.jpg": (lambda: photo()[:3000], "This picture is damaged"),
    "cut.png": (lambda: photo("PNG")[:3000], "This picture is damaged"),
    "page.svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    "figure.eps": (lambda: bytes_of(make_picture(1, 1), "EPS"), "not a picture of a known kind"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_is_no_picture_is_answered_in_words(client, tmp_path, name):
    make, text = BAD_FILES[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(Exception, match=text) as caught:
        ask(client, tmp_path / name)
    assert "/" not in str(caught.value)  # no path on the server
    (tmp_path / "photo.jpg").write_bytes(photo())
    assert len(ask(client, tmp_path / "photo.jpg")[0]) == 5


def test_a_picture_of_100_megapixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    (tmp_path / "large.png").write_bytes(BAD_FILES["large.png"][0]())
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="more than 64 megapixels"):
        uploads.open_picture(str(tmp_path / "large.png"))


def test_an_upload_over_the_limit_is_refused(client, page, tmp_path):
    (tmp_path / "large.jpg").write_bytes(b"\xff" * 50_000_000)
    with pytest.raises(Exception, match="exceeds the maximum file size"):
        ask(client, tmp_path / "large.jpg")
    with open(tmp_path / "large.jpg", "rb") as file:  # by a client that does not check first
        answer = httpx.post(f"{page}/gradio_api/upload", files={"files": file}, timeout=60)
    assert answer.status_code == 413 and "4000000 bytes" in answer.text


@pytest.mark.parametrize("meta", [{"meta": {"_type": "gradio.FileData"}}, {}])
def test_neither_files_of_the_server_nor_links_are_read(page, space, meta):
    """Gradio's own input reads any file of the server if `meta` is left out (6.31.0)."""
    (space / "private.png").write_bytes(photo("PNG"))
    for path in (space / "private.png", space / "cache" / ".." / "private.png", "/etc/passwd", ""):
        got = post(page, {"path": str(path), **meta})
        assert "event: error" in got and str(space) not in got
        assert "This file was not uploaded." in got or meta
    got = post(page, {"path": "http://127.0.0.1:9/picture.png", **meta})
    assert ("Send the picture itself, not a link." if meta else "was not uploaded") in got


def post(page: str, file: dict | None) -> str:
    """The events that a client of the plain HTTP interface gets for an uploaded file."""
    url = f"{page}/gradio_api/call/classify"
    event = httpx.post(url, json={"data": [file]}, timeout=60).json()["event_id"]
    return httpx.get(f"{url}/{event}", timeout=60).text


def test_fifty_clients_at_once_are_all_answered(page):
    def one_client(number: int) -> str:
        files = {"files": (f"{number}.jpg", bytes_of(make_picture(number, number % 3), "JPEG"))}
        (path,) = httpx.post(f"{page}/gradio_api/upload", files=files, timeout=60).json()
        return post(page, {"path": path, "meta": {"_type": "gradio.FileData"}})

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(one_client, range(50)))
    for answer in answers:
        assert "event: complete" in answer and answer.count('"confidence"') == 5, answer


def test_it_listens_on_this_machine_only_unless_told(page, free_port):
    assert page == f"http://127.0.0.1:{free_port}"
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", free_port)):
        pass


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "L", "I;16", "1", "LA"])
def test_pictures_of_every_mode_are_taken(space, tmp_path, mode):
    gray = np.arange(0, 60_000, 10, dtype=np.uint16).reshape(60, 100)
    image = Image.fromarray(gray) if mode == "I;16" else make_picture(1, 1).convert(mode)
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    image.save(path)
    classes, heat_map = app.predict(pretrained.load(str(space)), uploads.open_picture(str(path)))
    assert len(classes) == 5 and heat_map.mode == "RGB"


@pytest.mark.parametrize("kind", uploads.FORMATS)
def test_damaged_pictures_are_classified_or_refused_and_nothing_else(space, tmp_path, kind):
    whole, rng = bytes_of(make_picture(2, 2), kind), random.Random(0)
    loaded, path, ends = pretrained.load(str(space)), tmp_path / "picture", set()
    for _ in range(60):
        data = bytearray(whole[: rng.choice([len(whole), rng.randrange(1, len(whole))])])
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(min(len(data), rng.choice([64, 9999])))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            ends.add(len(app.predict(loaded, uploads.open_picture(str(path)))[0]))
        except ValueError as error:
            ends.add(str(error).partition(" ")[0])
    assert ends <= {5, "This"}


def fails(capsys: pytest.CaptureFixture[str], words: list[object], *texts: str) -> None:
    """The command ends with 2 and one line that has all the texts."""
    assert app.main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("app.py: error: ") and all(text in line for text in texts), line


def test_mistakes_in_the_weights_end_it_with_one_message(capsys, tmp_path, free_port):
    def with_weights(path: object, *texts: str) -> None:
        fails(capsys, ["--port", free_port + 1, "--weights", path], *texts)

    fails(capsys, ["--port", free_port + 1], "model.safetensors and config.json beside app.py")
    with_weights(tmp_path / "none.pt", "none.pt: no such file or folder")
    other = random_weights()
    other["layer1.0.conv1.weight"] = torch.zeros(3, 3, 1, 1)
    torch.save(other, tmp_path / "other.pt")
    with_weights(tmp_path / "other.pt", "not this model's", "layer1.0.conv1.weight is (3, 3, 1, 1)")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg.pt")
    with_weights(tmp_path / "vgg.pt", "not a ResNet's")
    path = checkpoint.save(tmp_path, 1, {"model": random_weights(), "step": 1})
    path.write_bytes(path.read_bytes().replace(b"layer", b"lager", 1))
    with_weights(path, "step_000000001.pt is damaged")
    (tmp_path / "text.pt").write_text("no tensors")
    with_weights(tmp_path / "text.pt", "text.pt is not a file of tensors")
    folder = write_export(tmp_path / "export", random_weights())
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    with_weights(folder, "model.safetensors is damaged")
    with_weights(write_export(tmp_path / "few", random_weights(3)), "7 class names for 3 classes")
    weights = random_weights() | {"fc.bias": torch.full((len(NAMES),), torch.nan)}
    with_weights(write_export(tmp_path / "nan", weights), "fc.bias has values that are not finite")


def test_no_network_is_told(capsys, monkeypatch, tmp_path, free_port):
    def refuse(*args: object, **more: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    words = ["--port", free_port + 1, "--weights"]
    fails(capsys, [*words, "torchvision"], "--weights torchvision", "no route", "Offline")

    # What a closed port answers to the real client, at once and not after its usual 39 s.
    closed = f"http://127.0.0.1:{free_port + 1}" + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", closed)
    start_s = time.monotonic()
    fails(capsys, [*words, "user/name"], "--weights user/name: cannot be downloaded", "refused")
    assert time.monotonic() - start_s < 10


@pytest.mark.parametrize("package", ["gradio", "safetensors"])
def test_a_missing_package_is_named_with_the_command(
    capsys, monkeypatch, space, free_port, package
):
    monkeypatch.setitem(sys.modules, package, None)
    words = ["--port", free_port + 1, "--weights", space]
    fails(capsys, words, f"{package} is missing: pip install {package}")


def test_mistakes_in_the_address_end_it_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        fails(capsys, ["--port", port], f"--port {port} is in use on 127.0.0.1: choose another")
    fails(capsys, ["--port", 70_000], "--port 70000: must be 1 to 65535")
    fails(capsys, ["--host", "192.0.2.1"], "--host 192.0.2.1 --port 7860", "assign")
    fails(capsys, ["--max_mb", 0], "--max_mb 0: must be more than 0")


def test_a_run_is_shown_with_its_figures_and_no_folder_of_this_machine(tmp_path):
    run_dir = tmp_path / "secret" / "imagenet"
    state = {
        "model": random_weights(),
        "ema": random_weights(),
        "step": 5005,
        "commit": "a" * 40,
        "config": {
            "recipe": "onecycle50",
            "data_dir": "/secret/data/imagenet",
            "image_size": 176,
            "eval_image_size": 224,
            "eval_resize_size": 256,
            "layers": [1, 1, 1, 1],
            "width": 8,
            "total_batch_size": 256,
            "max_lr": 1.0,
            "seed": 0,
        },
        "rows": [{"val_top1": 76.5, "val_top5": 93.0, "epoch": 50.0, "seconds": 9000.0}],
        "classes": NAMES,
        "data": {"train": {"num_images": 1_281_167}},
    }
    checkpoint.mark_best(checkpoint.save(run_dir / "checkpoints", 5005, state))
    text = app.describe(app.load_model(str(run_dir)))
    assert text == (
        "# ResNet14\n\n**imagenet/best.pt** · 7 classes · top-1 76.50% · top-5 93.00% · averaged "
        "weights (EMA) · 224 px<br>recipe onecycle50 · 50 epochs · on imagenet · 1,281,167 "
        "training pictures · 2.5 h · commit aaaaaaa"
    )
    export = write_export(tmp_path / "exported", random_weights())
    assert "**exported** · 7 classes · top-1 78.12%" in app.describe(app.load_model(str(export)))
    assert app.shown_name("user/name") == "user/name"


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_classes_and_heat_map_and_the_page_asks_no_one_else(page, tmp_path, width):
    files = {"photo.jpg": photo(), "other.png": photo("PNG"), "text.jpg": b"no picture" * 99}
    files["large.jpg"] = b"\xff" * (MAX_MB + 1) * 1_000_000
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with app_screenshots.browser() as driver:
        app_screenshots.set_size(driver, width, 800)
        driver.get(page)
        app_screenshots.give(driver, tmp_path / "photo.jpg")
        rows = app_screenshots.shown_classes(driver)
        assert len(rows) == 5 and {row.split("\n")[0] for row in rows} <= set(SHOWN_NAMES)
        text = driver.execute_script("return document.body.innerText")
        assert "ResNet14" in text and "top-1 78.12%" in text and "recipe rsb_a3" in text
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        severe = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert not severe
        for name, words in (("text.jpg", "not a picture"), ("large.jpg", "maximum allowed size")):
            take_away(driver)
            app_screenshots.give(driver, tmp_path / name)
            found = f"document.body.innerText.includes('{words}')"
            app_screenshots.wait_until(driver, found, f"the message {words}")
        driver.get(page)
        app_screenshots.give(driver, tmp_path / "other.png")
        assert len(app_screenshots.shown_classes(driver)) == 5
        driver.get(page)
        example = "document.querySelector('button.gallery-item')"
        app_screenshots.wait_until(driver, example, "the examples")
        driver.execute_script(f"{example}.click()")
        assert len(app_screenshots.shown_classes(driver)) == 5
        assert app_screenshots.requested_hosts(driver) == {"127.0.0.1"}


def take_away(driver: object) -> None:
    """Press the cross over the picture, if there is one, and wait for the empty input."""
    driver.execute_script("document.querySelector('button[aria-label=Clear]')?.click()")
    app_screenshots.wait_until(driver, "document.querySelector('input[type=file]')", "the input")


@needs_browser
def test_the_screenshots_are_made_by_one_command(page, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(photo())
    words = [str(tmp_path / "photo.jpg"), "--url", page, "--out", str(tmp_path)]
    assert app_screenshots.main(words) == 0
    with Image.open(tmp_path / "app.png") as desk, Image.open(tmp_path / "app_phone.png") as phone:
        assert (desk.width, phone.width) == (1280, 390) and phone.height > desk.height
