"""Convolutions as matrix products: what nn.Conv2d computes, forward and backward."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model import ResNet
from resnet50.training import matrix_convolution
from resnet50.training.matrix_convolution import MatrixConv2d, use_matrix_products


@settings(max_examples=100, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.sampled_from([1, 3, 7]),
    stride=st.integers(1, 2),
    sides=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    channels_last=st.booleans(),
)
def test_results_and_gradients_are_those_of_torch(channels, kernel, stride, sides, channels_last):
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    plain = nn.Conv2d(*channels, kernel, stride, padding=kernel // 2, bias=False).double()
    plain = plain.to(memory_format=layout)
    product = copy.deepcopy(plain)
    use_matrix_products(product)
    assert type(product) is MatrixConv2d
    images = torch.randn(3, channels[0], *sides, dtype=torch.double).to(memory_format=layout)
    results = []
    for convolution in plain, product:
        x = images.clone().requires_grad_()
        y = convolution(x)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))
        results.append((y, x.grad, convolution.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("side", [32, 40, 64])
def test_a_network_trains_the_same_and_evaluates_bit_for_bit(side, monkeypatch):
    torch.manual_seed(0)
    plain = ResNet((1, 1, 1, 1), 8, 5, zero_init_gamma=False).to(memory_format=torch.channels_last)
    product = copy.deepcopy(plain)
    use_matrix_products(product)
    assert list(product.state_dict()) == list(plain.state_dict())
    images = torch.randn(4, 3, side, side).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(product.eval()(images), plain.eval()(images))
    products = note_products(monkeypatch)
    for model in plain, product:
        model.train()(images).square().mean().backward()
    assert products, "no convolution had few enough pixels"
    for (name, ours), theirs in zip(product.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)
        # A fused optimizer pairs weights and gradients as they lie in memory.
        if ours.dim() == 4 and ours.shape[2] > 1:
            assert ours.grad.stride() == ours.stride(), name


def note_products(monkeypatch) -> list[int]:
    """Numbers of weights of the convolutions that are computed as products."""
    sizes, linear = [], matrix_convolution.functional.linear

    def noted(patches: torch.Tensor, weights: torch.Tensor, *bias: torch.Tensor):
        if patches.dim() == 4:  # not the classifier's
            sizes.append(weights.numel())
        return linear(patches, weights, *bias)

    monkeypatch.setattr(matrix_convolution.functional, "linear", noted)
    return sizes


def test_convolutions_that_blur_stay_what_they_are():
    model = ResNet((1, 1, 1, 1), 8, 5, blurpool=True)
    before = {name: type(module) for name, module in model.named_modules()}
    use_matrix_products(model)
    changed = {name for name, module in model.named_modules() if type(module) is not before[name]}
    assert changed == {name for name, kind in before.items() if kind is nn.Conv2d}
