"""The demo page: upload a picture, see its five likeliest classes and where the model looked.

    python app.py --weights runs/imagenet                  # a run's best checkpoint
    python app.py --weights exported/imagenet              # what export.py wrote
    python app.py --weights USER/NAME                      # the same on Hugging Face
    python app.py --weights torchvision                    # the public weights, downloaded once
    python app.py --weights FILE --host 0.0.0.0            # for others on the network

Without --weights it loads model.safetensors and config.json from its own folder, or else the model
named in weights.txt there, which is how it runs as a Hugging Face Space. By default it listens on
this machine only. It creates no public link and sends no usage statistics, and deletes uploads
after an hour. Programs can query it with gradio_client:

    Client("http://127.0.0.1:7860").predict(handle_file("picture.jpg"), api_name="/classify")
"""

import resnet50.system.preflight  # noqa: F401 (first: it reports what this Python lacks)

# isort: split
import argparse
import errno
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from resnet50.config.command_line import Parser, print_error
from resnet50.inference import grad_cam, pretrained, uploads
from resnet50.inference.pretrained import Pretrained

if TYPE_CHECKING:
    import gradio

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE / "images/examples"  # CC0, of github.com/alexeygrigorev/clothing-dataset-small
WEIGHTS_FILE = "weights.txt"
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
# Gradio reads both when it is imported, so they must be set before that.
NO_STATISTICS = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}

NUM_SHOWN, HEAT_MAP_PX = 5, 448
MAX_THREADS = 4  # one picture is too little work for more
# One at a time: the model uses all threads, and a queued picture takes up only its file.
MAX_RUNNING, MAX_WAITING = 1, 64
KEEP_UPLOADS_S = 3600
# What the page says about its model, as far as it is known.
MODEL_LINE = {
    "name": "**{}**",
    "num_classes": "{} classes",
    "top1": "top-1 {:.2f}%",
    "top5": "top-5 {:.2f}%",
    "kind": "{}",
    "image_size": "{} px",
}
RUN_LINE = {
    "recipe": "recipe {}",
    "epochs": "{:g} epochs",
    "data": "on {}",
    "num_train_images": "{:,} training pictures",
    "hours": "{:.4g} h",
    "commit": "commit {:.7}",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line; a Space sets host and port through Gradio's own environment variables."""
    parser = Parser("app.py", __doc__)
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    add = parser.add_argument
    add(
        "--weights",
        help="checkpoint, run folder, export, any ResNet50 file or folder, USER/NAME on "
        "Hugging Face, or `torchvision` [app.py's own folder]",
    )
    add(
        "--v1_strides",
        action="store_true",
        help="other people's weights are from a ResNet v1, which strides in the first 1x1",
    )
    add("--host", default=host, help=f"address to listen on [{host}]")
    add("--port", type=int, default=port, metavar="N", help=f"port, 1-65535 [{port}]")
    add("--max_mb", type=float, default=20, metavar="X", help="largest upload in MB [20]")
    return parser


def check_address(host: str, port: int) -> None:
    """Raise ValueError unless the page can listen there; called before the model is loaded."""
    if not 1 <= port <= 65535:
        raise ValueError(f"--port {port}: must be 1 to 65535")
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        in_use = f"--port {port} is in use on {host}: choose another"
        other = f"--host {host} --port {port}: {error.strerror}"
        raise ValueError(in_use if error.errno == errno.EADDRINUSE else other) from None


def own_source() -> str:
    """The source used without --weights: the model beside app.py, else the one in weights.txt."""
    names = pretrained.WEIGHTS, pretrained.CONFIG
    if all((HERE / name).exists() for name in names):
        return str(HERE)
    if (HERE / WEIGHTS_FILE).exists():
        return (HERE / WEIGHTS_FILE).read_text().strip()
    what = "give --weights with a run folder, a checkpoint, an export, USER/NAME or torchvision"
    raise ValueError(f"no {' and '.join(names)} beside app.py: {what}")


def load_model(source: str | None, v1_strides: bool = False) -> Pretrained:
    """The model to show, ready to run: threads set, warmed up; its notes are printed.

    Raises ValueError naming the source and what to do.
    """
    source = source or own_source()
    try:
        loaded = pretrained.load(source, v1_strides=v1_strides)
    except OSError as error:
        raise ValueError(
            f"--weights {source} cannot be loaded: {error}. Without a network give a file or folder"
        ) from error
    for note in loaded.notes:
        print(f"{loaded.name}: {note}", file=sys.stderr)
    torch.set_num_threads(min(MAX_THREADS, os.cpu_count() or 1))
    loaded.model.to(memory_format=torch.channels_last)
    gray = Image.new("RGB", (loaded.resize_size, loaded.resize_size), (124, 116, 104))
    with torch.inference_mode():
        logits = loaded.model(loaded.pixels(gray))
    if not logits.isfinite().all():
        raise ValueError(f"--weights {source}: the model's outputs are not finite")
    return loaded


def predict(loaded: Pretrained, picture: Image.Image) -> tuple[dict[str, float], Image.Image]:
    """The likeliest classes, name -> probability 0-1, and the crop with the first one's heat."""
    crop = loaded.crop(picture)
    with torch.inference_mode():
        logits, features = grad_cam.forward(loaded.model, loaded.normalized(crop))
        top = logits[0].softmax(dim=0).topk(min(NUM_SHOWN, logits.shape[1]))
        labels = top.indices.tolist()
        heat = grad_cam.heat(loaded.model.fc, features[0], labels[0])
    values = zip(labels, top.values.tolist(), strict=True)
    classes = {loaded.classes[label]: value for label, value in values}
    return classes, grad_cam.overlay(crop, heat, HEAT_MAP_PX)


def shown_name(name: str) -> str:
    """Where the model comes from, without revealing this machine's folders."""
    path = Path(name).absolute()
    if path == HERE or not path.exists():
        return "" if path == HERE else name  # a repository's, or torchvision's
    return f"{path.parents[1].name}/{path.name}" if path.parent.name == "checkpoints" else path.name


def describe(loaded: Pretrained) -> str:
    """The model's name, accuracy and training run in Markdown, as far as they are known."""
    known = {
        **loaded.about,
        "name": shown_name(loaded.name),
        "kind": "averaged weights (EMA)" if loaded.kind == "EMA" else "",
        "num_classes": loaded.model.fc.out_features,
        "image_size": loaded.image_size,
    }
    known = {key: value for key, value in known.items() if value not in (None, "")}
    lines = (
        " · ".join(text.format(known[key]) for key, text in line.items() if key in known)
        for line in (MODEL_LINE, RUN_LINE)
    )
    return f"# {loaded.architecture}\n\n" + "<br>".join(filter(None, lines))


def build_page(loaded: Pretrained) -> "gradio.Blocks":
    """The page of a model, not yet served."""
    import gradio

    size = {"height": 380, "min_width": 300}  # pixels
    examples = [  # clothes: shown if the model has such classes, as ImageNet's models do
        str(path)
        for path in sorted(EXAMPLES.glob("*.jpg"))
        if len(loaded.classes) == 1000 or path.stem in loaded.classes
    ]

    def classify(path: str | None) -> tuple[dict[str, float] | None, Image.Image | None]:
        """The five likeliest classes of a picture, and a heat map of the evidence for the first."""
        if path is None:
            return None, None  # the picture was removed
        try:
            picture = uploads.open_picture(path)
        except ValueError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        return predict(loaded, picture)

    title = loaded.architecture
    every_and_age = (KEEP_UPLOADS_S, KEEP_UPLOADS_S)
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=every_and_age) as page:
        gradio.Markdown(describe(loaded))
        with gradio.Row():  # one below the other on a phone
            picture = gradio.Image(
                label="Picture", sources=["upload", "clipboard", "webcam"], buttons=[], **size
            )
            classes = gradio.Label(label="Classes", min_width=size["min_width"], elem_id="classes")
            heat_map = gradio.Image(
                label="Evidence for the first class",
                interactive=False,
                elem_id="heat_map",
                buttons=["fullscreen"],
                alt_text="colored where the model looked",
                **size,
            )
        uploads.accept_only(picture)
        if examples:
            uploads.offer(examples, picture)
        picture.change(classify, picture, [classes, heat_map], api_name="classify")
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=MAX_RUNNING)
    # Every millisecond by default, except on Windows: an idle page took 6% of a core for that.
    page._queue.sleep_when_free = 0.05  # seconds
    return page


def serve(page: "gradio.Blocks", args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    page.launch(
        server_name=args.host,
        server_port=args.port,
        max_file_size=int(args.max_mb * 1_000_000),
        share=False,
        show_error=False,  # unexpected errors show only "Error", but gradio.Error shows its text
        run_history=False,  # pictures are not kept in the browser either
        enable_monitoring=False,
        footer_links=["api"],
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"the page is at {page.local_url} (Ctrl-C stops it)", flush=True)
    page.block_thread()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; returns 0, or 2 if the user must change something."""
    args = build_parser().parse_args(argv)
    os.environ.update(NO_STATISTICS)
    try:
        if args.max_mb <= 0:
            raise ValueError(f"--max_mb {args.max_mb:g}: must be more than 0")
        check_address(args.host, args.port)
        loaded = load_model(args.weights, args.v1_strides)
        # The model may have come through a proxy; Gradio checks that its own page is up, and a
        # proxy cannot reach this machine's 127.0.0.1.
        for name in [name for name in os.environ if name.lower() in PROXIES]:
            del os.environ[name]
        serve(build_page(loaded), args)
    except ModuleNotFoundError as error:
        message = f"the package {error.name} is missing: pip install {error.name}"
    except ImportError as error:  # from httpx, for a SOCKS proxy that it does not support
        message = str(error)
    except (ValueError, OSError) as error:
        message = str(error)
    else:
        return 0
    return print_error("app.py", message)


if __name__ == "__main__":
    sys.exit(main())
