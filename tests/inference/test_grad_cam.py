"""The heat map equals Grad-CAM as published, computed by autograd."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model import ResNet
from resnet50.inference import grad_cam

SHAPES = {
    "tiny": ({"layers": (1, 1, 1, 1), "width": 8, "num_classes": 5}, 96),
    "blurpool": ({"layers": (1, 2, 1, 1), "width": 8, "num_classes": 5, "blurpool": True}, 128),
    "ResNet50": ({}, 224),
}


def random_model(arguments: dict) -> ResNet:
    """In evaluation mode, its batch norms' statistics random too."""
    torch.manual_seed(0)
    model = ResNet(zero_init_gamma=False, **arguments)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def reference(model: ResNet, images: Tensor, label: int) -> Tensor:
    """Equations 1 and 2 of arXiv:1610.02391 on the output of layer4."""
    kept = []
    hook = model.layer4.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(images)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[0, label], kept[0])
    alpha = gradient[0].mean(dim=(1, 2))
    return (alpha[:, None, None] * kept[0][0]).sum(dim=0).relu().detach()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_heat_is_grad_cam_as_autograd_computes_it(shape):
    arguments, size = SHAPES[shape]
    model = random_model(arguments)
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits, features = grad_cam.forward(model, images)
        assert torch.equal(logits, model(images))
        labels = logits[0].argsort()[[0, 2, -1]].tolist()
        heats = [grad_cam.heat(model.fc, features[0], label) for label in labels]
    assert heats[0].shape == (-(-size // 32), -(-size // 32))
    assert max(float(heat.max()) for heat in heats) > 0
    for label, heat in zip(labels, heats, strict=True):
        torch.testing.assert_close(heat, reference(model, images, label), rtol=1e-4, atol=1e-6)


def test_the_overlay_shows_the_crop_where_it_is_cold_and_the_brightest_color_where_it_is_hot():
    crop = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    heat = torch.zeros(4, 4)
    assert np.array_equal(grad_cam.overlay(crop, heat, 64), crop)  # nothing supports the class
    heat[0, 3] = 7
    shown = np.asarray(grad_cam.overlay(crop, heat, 64)).astype(int)
    assert np.array_equal(shown[40:, :20], crop[40:, :20])
    hot = 0.3 * crop[:4, -4:] + 0.7 * np.array(grad_cam.COLORS[-1])
    assert np.abs(shown[:4, -4:] - hot).max() <= 1
    assert grad_cam.overlay(crop, heat, 448).size == (448, 448)
