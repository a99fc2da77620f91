"""Mixed images are torchvision's and a function of their key; losses are their formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from model import ResNet
from resnet50.training import losses

K = 7
ALPHAS = {"mixup": (0.2, 0.0), "cutmix": (0.0, 1.0), "both": (0.2, 1.0)}
every_kind = pytest.mark.parametrize("kind", ALPHAS)


def make_images(size: int = 8, side: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float images in channels_last order, as the loop has them, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, side, side, generator=generator)
    labels = torch.randint(0, K, (size,), generator=generator)
    return images.contiguous(memory_format=torch.channels_last), labels


def mix(kind: str, key: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    return losses.mix(*make_images(seed=seed), K, *ALPHAS[kind], key)


def torchvisions(kind: str) -> nn.Module:
    mixup, cutmix = v2.MixUp(alpha=0.2, num_classes=K), v2.CutMix(alpha=1.0, num_classes=K)
    return {"mixup": mixup, "cutmix": cutmix, "both": v2.RandomChoice([mixup, cutmix])}[kind]


@every_kind
def test_mixing_is_torchvisions_under_the_same_seed(kind, monkeypatch):
    """The key becomes a seed; that seed given to torch, torchvision does the same to the bit."""
    seeds, generator = [], torch.default_generator
    manual_seed = generator.manual_seed

    class Recorded:
        def manual_seed(self, seed: int) -> None:
            seeds.append(seed)
            manual_seed(seed)

    for step in range(8):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "default_generator", Recorded())
            images, targets = mix(kind, (3, step, 0))
        with torch.random.fork_rng():
            torch.manual_seed(seeds[-1])
            expected_images, expected_targets = torchvisions(kind)(*make_images())
        assert torch.equal(images, expected_images) and torch.equal(targets, expected_targets)
    assert len(set(seeds)) == 8


@every_kind
def test_the_same_key_gives_the_same_bits_whatever_was_drawn_before(kind):
    torch.manual_seed(1)
    first = mix(kind, (5, 2, 1))
    torch.rand(100)
    mix(kind, (5, 2, 2))
    again = mix(kind, (5, 2, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@every_kind
def test_another_seed_step_or_micro_batch_gives_another_mixture(kind):
    keys = [(seed, step, number) for seed in (0, 1) for step in (0, 1) for number in (0, 1, 2)]
    images = [mix(kind, key)[0] for key in keys]
    for i, one in enumerate(images):
        assert not any(torch.equal(one, other) for other in images[:i]), keys[i]


@every_kind
def test_the_global_generator_and_the_input_are_left_as_they_were(kind):
    torch.manual_seed(4)
    images, labels = make_images()
    before, images_before = torch.get_rng_state(), images.clone()
    mixed, _ = losses.mix(images, labels, K, *ALPHAS[kind], (0, 0, 0))
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(images, images_before)
    assert mixed.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=40)
@given(st.sampled_from(sorted(ALPHAS)), st.integers(0, 2**63 - 1), st.integers(2, 9))
def test_targets_weigh_each_pair_of_labels_as_the_pixels_are(kind, seed, size):
    """Constant images: a pixel shows the part that its own image and its neighbor have in it."""
    labels = torch.arange(size) % K
    images = torch.arange(size, dtype=torch.float32)[:, None, None, None].expand(size, 3, 32, 32)
    mixed, targets = losses.mix(images, labels, K, *ALPHAS[kind], (seed, 0, 0))
    assert targets.shape == (size, K) and targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(size))
    neighbors, own_labels = images.roll(1, 0), functional.one_hot(labels, K).float()
    theirs = own_labels.roll(1, 0)
    # The mean pixel is own x w + neighbor x (1 - w): one w for the batch.
    shares = (mixed - neighbors).mean((1, 2, 3)) / (images - neighbors).mean((1, 2, 3))
    torch.testing.assert_close(shares, shares[:1].expand(size), atol=1e-5, rtol=0)
    expected = shares[:, None] * own_labels + (1 - shares[:, None]) * theirs
    torch.testing.assert_close(targets, expected, atol=1e-5, rtol=0)


def test_with_both_each_has_about_half_of_the_batches():
    """A pasted rectangle leaves every pixel one of two; a blend leaves none."""
    images = torch.arange(4, dtype=torch.float32)[:, None, None, None].expand(4, 3, 32, 32)
    num_cut = 0
    for step in range(400):
        mixed, targets = losses.mix(images, torch.arange(4), K, 1.0, 1.0, (9, step, 0))
        weight = targets.max().item()
        num_cut += weight == 1 or bool((mixed == mixed.round()).all())
    assert abs(num_cut - 200) < 4 * math.sqrt(100)


def random_logits(seed: int, classes: int = K) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (5, K), labels (5,) and soft targets (5, K)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(5, classes, generator=generator)
    labels = torch.randint(0, classes, (5,), generator=generator)
    return logits, labels, torch.rand(5, classes, generator=generator).softmax(1)


@given(st.integers(0, 2**31), st.floats(0, 1))
def test_cross_entropy_is_torchs_for_labels_and_for_mixtures(seed, smoothing):
    logits, labels, soft = random_logits(seed)
    for targets in (labels, soft):
        found = losses.losses_of(logits, targets, "ce", smoothing)
        expected = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        assert found.shape == (5,)
        torch.testing.assert_close(found.mean(), expected)


@given(st.integers(0, 2**31), st.floats(0, 1), st.booleans())
def test_binary_cross_entropy_is_composers_formula(seed, smoothing, is_soft):
    """Summed over the classes, each a question of its own; smoothing y (1 - s) + s / K."""
    logits, labels, soft = random_logits(seed)
    y = soft if is_soft else functional.one_hot(labels, K).float()
    y = y * (1 - smoothing) + smoothing / K
    p = torch.sigmoid(logits.double())
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).sum(1)
    found = losses.losses_of(logits, soft if is_soft else labels, "bce", smoothing)
    assert found.shape == (5,) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_labels_are_the_targets_of_one_class(kind):
    logits, labels, _ = random_logits(3)
    one_hot = functional.one_hot(labels, K).float()
    for smoothing in (0.0, 0.1):
        torch.testing.assert_close(
            losses.losses_of(logits, labels, kind, smoothing),
            losses.losses_of(logits, one_hot, kind, smoothing),
        )


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_losses_stay_float32_under_mixed_precision(kind):
    """As the loop has it: the network in bf16, its logits and the loss in float32."""
    model, (images, labels) = ResNet((1, 1, 1, 1), 8, K), make_images()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    images, targets = losses.mix(images, labels, K, 0.2, 1.0, (0, 0, 0))
    assert images.dtype == targets.dtype == torch.float32
    for each in (labels, targets):
        assert losses.losses_of(logits.float(), each, kind, 0.1).dtype == torch.float32


@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_a_constant_bias_starts_binary_cross_entropy_at_log_k_plus_one(classes):
    classifier = nn.Linear(64, classes)
    nn.init.zeros_(classifier.weight)
    losses.start_bias_at_log_constant(classifier)
    logits = classifier(torch.randn(5, 64))
    probabilities = torch.sigmoid(logits.double())
    torch.testing.assert_close(
        probabilities, torch.full_like(probabilities, 1 / (classes + 1)), atol=0, rtol=1e-5
    )
    labels = torch.arange(5) % classes
    at_start = losses.losses_of(logits.detach(), labels, "bce")
    # -log p - (K - 1) log(1 - p) with p = 1 / (K + 1)
    exact = math.log(classes + 1) + (classes - 1) * math.log(1 + 1 / classes)
    assert at_start.tolist() == pytest.approx([exact] * 5, rel=1e-5)
    assert exact == pytest.approx(math.log(classes) + 1, abs=1 / classes)
    with_zeros = losses.losses_of(torch.zeros(5, classes), labels, "bce")
    assert with_zeros.tolist() == pytest.approx([classes * math.log(2)] * 5, rel=1e-5)
