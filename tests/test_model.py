"""The model is torchvision's resnet50 to the bit, in keys and in numbers."""

import pytest
import torch
import torchvision
from torch import nn

from model import Bottleneck, ResNet, architecture_of, load_weights


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
    assert architecture_of(state) == {"layers": layers, "width": width, "num_classes": num_classes}
    with pytest.raises(ValueError, match=r"no tensor conv1\.weight"):
        architecture_of({"features.0.weight": torch.zeros(1)})


def test_tiny_checkpoint_is_under_two_megabytes(tmp_path):
    state = ResNet((1, 1, 1, 1), 8, 10).state_dict()
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    assert path.stat().st_size < 1_000_000  # model, momentum and EMA are three of these
