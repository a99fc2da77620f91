"""The model is torchvision's resnet50 to the bit, in keys and in numbers."""

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from model import (
    Blur,
    BlurConv2d,
    BlurMaxPool2d,
    Bottleneck,
    ResNet,
    architecture_of,
    load_backbone,
    load_weights,
)


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    torch.manual_seed(1)
    model = torchvision.models.resnet50()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that a mix-up of two buffers shows
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def test_keys_order_and_shapes_are_torchvisions(reference):
    ours, theirs = ResNet().state_dict(), reference.state_dict()
    assert list(ours) == list(theirs)
    assert [t.shape for t in ours.values()] == [t.shape for t in theirs.values()]
    assert len(ours) == 320
    assert sum(p.numel() for p in ResNet().parameters()) == 25_557_032


@pytest.mark.parametrize("size", [224, 97])
def test_logits_are_torchvisions_to_the_bit(reference, size):
    ours = ResNet().eval()
    load_weights(ours, reference.state_dict())
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(ours(images), reference(images))


def test_our_weights_load_into_torchvisions_model():
    ours = ResNet(num_classes=7)
    torchvision.models.resnet50(num_classes=7).load_state_dict(ours.state_dict())


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_wrappers_prefixes_are_stripped(prefix):
    model = ResNet((1, 1, 1, 1), 8, 3)
    wrapped = {prefix + key: tensor + 1 for key, tensor in model.state_dict().items()}
    load_weights(model, wrapped)
    assert torch.equal(model.fc.bias, wrapped[f"{prefix}fc.bias"])


def test_other_models_weights_are_refused_and_change_nothing():
    model = ResNet((1, 1, 1, 1), 8, 3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    wrong = ResNet((1, 1, 1, 1), 8, 4).state_dict()
    del wrong["bn1.bias"]
    wrong["extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"missing bn1\.bias; unexpected extra; fc\.weight is"):
        load_weights(model, wrong)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_blocks_start_as_the_identity_only_if_asked():
    gammas = [m.bn3.weight for m in ResNet().modules() if isinstance(m, Bottleneck)]
    assert len(gammas) == 16 and not any(gamma.any() for gamma in gammas)
    model = ResNet((1, 1, 1, 1), 8, 3, zero_init_gamma=False)
    assert all(m.bn3.weight.all() for m in model.modules() if isinstance(m, Bottleneck))


def test_every_relu_is_a_module_used_once():
    model, calls = ResNet((1, 1, 1, 1), 8, 3), []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, *_: calls.append(id(module)))
    model(torch.zeros(2, 3, 32, 32))
    assert len(calls) == len(set(calls)) == 1 + 3 * 4


@pytest.mark.parametrize(
    "layers, width, num_classes", [((3, 4, 6, 3), 64, 10), ((1, 2, 1, 1), 8, 3)]
)
def test_architecture_is_read_off_a_state_dict(layers, width, num_classes):
    state = ResNet(layers, width, num_classes).state_dict()
    assert architecture_of(state) == {
        "layers": layers,
        "width": width,
        "base_width": 64,
        "num_classes": num_classes,
    }
    with pytest.raises(ValueError, match=r"no tensor conv1\.weight"):
        architecture_of({"features.0.weight": torch.zeros(1)})


def test_tiny_checkpoint_is_under_two_megabytes(tmp_path):
    state = ResNet((1, 1, 1, 1), 8, 10).state_dict()
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    assert path.stat().st_size < 1_000_000  # model, momentum and EMA are three of these


def random_images(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blurred(x: Tensor) -> Tensor:
    """(1 2 1; 2 4 2; 1 2 1) / 16 written out as sums of shifted pictures, zeros around them."""
    height, width = x.shape[2:]
    padded, result = functional.pad(x, (1, 1, 1, 1)), torch.zeros_like(x)
    for i, row in enumerate([[1, 2, 1], [2, 4, 2], [1, 2, 1]]):
        for j, weight in enumerate(row):
            result += weight / 16 * padded[..., i : i + height, j : j + width]
    return result


@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (1, 5, 7, 9), (3, 1, 1, 1)])
def test_blur_is_the_binomial_one_of_every_channel(shape):
    x = random_images(1, *shape)
    torch.testing.assert_close(Blur(shape[1])(x), blurred(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kernel_size, padding", [(3, 1), (1, 0)])
def test_a_blurred_convolution_is_ffcvs(kernel_size, padding):
    """Blur with stride 1 and padding 1, then the convolution with its own weights and stride."""
    conv = BlurConv2d(6, 4, kernel_size, 2, padding=padding, bias=False)
    x = random_images(2, 2, 6, 11, 8)
    expected = functional.conv2d(blurred(x), conv.weight, stride=2, padding=padding)
    torch.testing.assert_close(conv(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [8, 9])
def test_a_blurred_maximum_is_blurred_before_every_second_is_taken(size):
    x = random_images(3, 2, 5, size, size)
    dense = functional.max_pool2d(x, 3, stride=1, padding=1)
    found = BlurMaxPool2d(5)(x)
    torch.testing.assert_close(found, blurred(dense)[..., ::2, ::2], atol=1e-6, rtol=1e-5)
    kernel = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16
    strided = functional.conv2d(dense, kernel.expand(5, 1, 3, 3), stride=2, padding=1, groups=5)
    torch.testing.assert_close(found, strided, atol=1e-6, rtol=1e-5)
    assert found.shape == functional.max_pool2d(x, 3, stride=2, padding=1).shape


def test_six_strided_convolutions_and_the_max_pool_are_blurred_and_the_first_one_is_not():
    model = ResNet(blurpool=True)
    strided = {
        name: type(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1)
    }
    blocks = [f"layer{i}.0.{name}" for i in (2, 3, 4) for name in ("conv2", "downsample.0")]
    assert strided == {"conv1": nn.Conv2d} | dict.fromkeys(blocks, BlurConv2d)
    assert sum(isinstance(module, BlurConv2d) for module in model.modules()) == 6
    assert isinstance(model.maxpool, BlurMaxPool2d)
    assert not any(isinstance(module, Blur) for module in ResNet().modules())


def test_blurring_has_no_weights_and_draws_none():
    states = []
    for blurpool in (False, True):
        torch.manual_seed(5)
        states.append(ResNet(blurpool=blurpool).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_shift_by_a_pixel_moves_blurred_logits_less():
    """Relative to the logits' own spread, on fields of coarse noise, over four initializations."""
    moved = {False: 0.0, True: 0.0}
    for seed in range(4):
        noise = random_images(seed, 4, 3, 24, 24)
        field = functional.interpolate(noise, size=97, mode="bicubic")
        for blurpool in moved:
            torch.manual_seed(seed)
            model = ResNet((1, 1, 1, 1), 8, 10, zero_init_gamma=False, blurpool=blurpool)
            with (
                torch.no_grad()
            ):  # training mode: the batch's own statistics, as there are no others
                one, other = model(field[..., :96, :96]), model(field[..., :96, 1:])
            moved[blurpool] += ((one - other).norm() / (one - one.mean(0)).norm()).item()
    assert moved[True] < 0.8 * moved[False]


def test_a_backbone_brings_its_classifier_where_the_classes_are_as_many():
    source, model = ResNet((1, 1, 1, 1), 8, 3), ResNet((1, 1, 1, 1), 8, 3)
    weights = {f"module.{key}": tensor + 1 for key, tensor in source.state_dict().items()}
    assert load_backbone(model, weights)
    assert all(torch.equal(weights[f"module.{key}"], t) for key, t in model.state_dict().items())


@pytest.mark.parametrize("has_head", [True, False])
def test_a_backbone_of_other_classes_leaves_the_fresh_classifier(has_head):
    weights = ResNet((1, 1, 1, 1), 8, 10).state_dict()
    if not has_head:
        del weights["fc.weight"], weights["fc.bias"]
    model = ResNet((1, 1, 1, 1), 8, 3, blurpool=True)
    before = copy.deepcopy(model.state_dict())
    assert not load_backbone(model, weights)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key] if key.startswith("fc.") else weights[key]), key


@pytest.mark.parametrize("layers, width", [((1, 2, 1, 1), 8), ((1, 1, 1, 1), 16)])
@pytest.mark.parametrize("num_classes", [3, 4])
def test_another_networks_backbone_is_refused_and_changes_nothing(layers, width, num_classes):
    model = ResNet((1, 1, 1, 1), 8, 3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="these weights are not this model's: "):
        load_backbone(model, ResNet(layers, width, num_classes).state_dict())
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
