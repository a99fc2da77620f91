"""A trained model in the formats that other programs run, with functions to write and open each.

    model.safetensors, config.json    for model.py (pretrained.load) and for timm
    model.onnx                        fp32, any number of pictures at once
    model_int8.onnx                   the same in 8 bits, calibrated on pictures
    model.engine                      TensorRT; never run here, it needs an NVIDIA GPU

Only this file needs onnx, onnxscript, onnxruntime and tensorrt, which are imported where they are
used.

Shape letters: B batch, S side of the pictures in pixels, K classes.
"""

import importlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from model import BASE_WIDTH, architecture_of
from resnet50.inference import pretrained
from resnet50.inference.pretrained import Pretrained

SAFETENSORS, ONNX, INT8, TENSORRT = "safetensors", "onnx", "int8", "tensorrt"
FILES = {
    SAFETENSORS: pretrained.WEIGHTS,
    ONNX: "model.onnx",
    INT8: "model_int8.onnx",
    TENSORRT: "model.engine",
}
# What each format imports, and what pip calls it.
PACKAGES = {
    SAFETENSORS: {"safetensors": "safetensors"},
    ONNX: {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    INT8: {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    TENSORRT: {"tensorrt": "tensorrt-cu13"},
}
TRTEXEC = (  # S: side of the pictures in pixels
    "trtexec --onnx=model.onnx --saveEngine=model.engine --minShapes=images:1x3xSxS "
    "--optShapes=images:1x3xSxS --maxShapes=images:64x3xSxS"
)
OPSET = 18  # what torch's exporter writes without converting
INPUT, OUTPUT = "images", "logits"
# timm's resnets have 64 channels after the stem whatever else they are told (1.0.31, resnet.py).
TIMM_WIDTH = 64
TIMM_LAYERS = (3, 4, 6, 3)
# What a predictor is: normalized images float32 (B, 3, S, S), contiguous -> logits (B, K).
Predictor = Callable[[Tensor], Tensor]


def check_packages(formats: Iterable[str]) -> None:
    """Import what these formats need. Raises ValueError naming what is missing and the remedy."""
    for name in formats:
        missing = [pip for module, pip in PACKAGES[name].items() if not is_installed(module)]
        if missing:
            remedy = f"pip install {' '.join(missing)}"
            if name == TENSORRT:
                remedy += f"; or where TensorRT is, from {FILES[ONNX]}: {TRTEXEC}"
            raise ValueError(f"the format {name} needs a package: {remedy}")


def is_installed(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def module(name: str) -> ModuleType:
    """An optional package's module, which `check_packages` has found."""
    return importlib.import_module(name)


def config_of(loaded: Pretrained) -> dict[str, object]:
    """config.json: what timm needs to build and load it; under "training", what `pretrained` reads.

    A network that timm does not have (blurred or v1 strides, another width) gets a name that timm
    refuses: its resnet50 would either fail to load these weights or be a different model.
    """
    architecture = architecture_of(loaded.model.state_dict())
    layers, width = architecture["layers"], architecture["width"]
    base_width = architecture["base_width"]
    is_timms = width == TIMM_WIDTH and not (loaded.blurpool or loaded.v1_strides)
    config: dict[str, object] = {
        "architecture": "resnet50" if is_timms else "resnet50_of_this_project",
        "num_classes": architecture["num_classes"],
        "num_features": loaded.model.fc.in_features,
        "pretrained_cfg": {
            "input_size": [3, loaded.image_size, loaded.image_size],
            "interpolation": loaded.interpolation,
            "crop_pct": crop_share(loaded.image_size, loaded.resize_size),
            "crop_mode": "center",
            "mean": list(loaded.mean),
            "std": list(loaded.std),
            "num_classes": architecture["num_classes"],
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }
    arguments = {"layers": list(layers)} if layers != TIMM_LAYERS else {}
    arguments |= {"base_width": base_width} if base_width != BASE_WIDTH else {}
    if is_timms and arguments:
        config["model_args"] = arguments
    if loaded.folders:
        config["label_names"] = loaded.folders
        config["label_descriptions"] = dict(zip(loaded.folders, loaded.classes, strict=True))
    config["training"] = {
        "image_size": loaded.image_size,
        "resize_size": loaded.resize_size,
        "upright": loaded.upright,
        **loaded.variant,
        "layers": list(layers),
        "width": width,
        "base_width": base_width,
        "kind": loaded.kind,
        "about": loaded.about,
    }
    return config


def crop_share(image_size: int, resize_size: int) -> float:
    """timm's crop_pct, six digits, such that floor(image_size / it) is resize_size again."""
    share = math.floor(image_size / resize_size * 1e6) / 1e6
    return share if math.floor(image_size / share) == resize_size else share - 1e-6


def write_config(loaded: Pretrained, folder: Path) -> None:
    """Write config.json."""
    text = json.dumps(config_of(loaded), indent=2, ensure_ascii=False)
    (folder / pretrained.CONFIG).write_text(text + "\n", encoding="utf-8")


def write_safetensors(loaded: Pretrained, path: Path) -> None:
    """Write the weights under torchvision's keys, which are timm's too."""
    tensors = {key: tensor.contiguous() for key, tensor in loaded.model.state_dict().items()}
    # Not save_file: on a full disk that does not raise OSError.
    path.write_bytes(module("safetensors.torch").save(tensors, {"format": "pt"}))


def write_onnx(loaded: Pretrained, path: Path) -> None:
    """Write images float32 (B, 3, S, S), normalized -> logits (B, K), for any B.

    S is fixed; config.json is included in the metadata, so that the file can be used alone.
    """
    size = loaded.image_size
    # Two pictures: with one, torch would treat the batch size as a constant.
    example = torch.zeros(2, 3, size, size)
    program = torch.onnx.export(
        loaded.model,
        (example,),
        dynamo=True,
        dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}},
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=OPSET,
        verbose=False,
    )
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # paths of this machine
    program.model.metadata_props["config"] = json.dumps(config_of(loaded), ensure_ascii=False)
    program.save(path, external_data=False)


class CalibrationReader:
    """Gives onnxruntime pictures, one batch after the other, and then None."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches: Iterator[Tensor] = iter(batches)

    def get_next(self) -> dict[str, object] | None:
        """The next images float32 (B, 3, S, S)."""
        images = next(self._batches, None)
        return None if images is None else {INPUT: images.numpy()}


def write_int8(source: Path, path: Path, batches: Iterable[Tensor]) -> None:
    """Quantize the fp32 file `source` statically, its ranges taken from normalized pictures.

    Weights are int8 with a scale a channel, activations uint8 from their smallest to their largest
    value, which is what VNNI multiplies; without VNNI sums may saturate, so check there too:
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html. Batch norms are
    part of the convolutions already.
    """
    quantization = module("onnxruntime.quantization")
    prepared = path.with_suffix(".prepared")
    module("onnxruntime.quantization.shape_inference").quant_pre_process(source, prepared)
    quantization.quantize_static(
        prepared,
        path,
        CalibrationReader(batches),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        activation_type=quantization.QuantType.QUInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
    prepared.unlink()


def write_tensorrt(source: Path, path: Path, image_size: int, max_batch_size: int) -> None:
    """Build an engine for this machine's GPU from the fp32 file; not run on any GPU so far.

    Follows NVIDIA's documentation of the Python API of TensorRT 10 and 11, whose networks have the
    types given in the file: fp32, for which convolutions may use TF32. Raises ValueError if it
    fails.
    """
    trt = module("tensorrt")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        raise ValueError(f"TensorRT cannot parse {source.name}: {parser.get_error(0)}")
    shapes = [(count, 3, image_size, image_size) for count in (1, 1, max_batch_size)]
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *shapes)  # smallest, the one it is fastest for, largest
    settings = builder.create_builder_config()
    settings.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, settings)
    if engine is None:
        raise ValueError("TensorRT could not build the engine; its messages above say why")
    path.write_bytes(bytes(engine))


def eager_predictor(model: nn.Module) -> Predictor:
    """The model in PyTorch, in its faster memory order."""
    model = model.to(memory_format=torch.channels_last)

    def predict(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(images.contiguous(memory_format=torch.channels_last))

    return predict


def onnx_predictor(path: Path) -> Predictor:
    """An ONNX file in onnxruntime on the CPU, with as many threads as PyTorch has."""
    runtime = module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Its threads would otherwise spin on after a run and slow down whatever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return predict


def tensorrt_predictor(path: Path) -> Predictor:
    """An engine on the GPU, the copies there and back included; not run on any GPU so far."""
    trt = module("tensorrt")
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(path.read_bytes())
    context = engine.create_execution_context()
    num_classes = engine.get_tensor_shape(OUTPUT)[1]

    def predict(images: Tensor) -> Tensor:
        images = images.cuda()
        logits = torch.empty(len(images), num_classes, device="cuda")
        context.set_input_shape(INPUT, tuple(images.shape))
        context.set_tensor_address(INPUT, images.data_ptr())
        context.set_tensor_address(OUTPUT, logits.data_ptr())
        context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        return logits.cpu()

    return predict
