"""Weight decay, SGD, AdamW and the average of the weights: against their formulas and torch."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import assert_same, values_of
from torch import Tensor, nn

from model import ResNet
from resnet50.config.train_config import TrainConfig
from resnet50.run import resume
from resnet50.training import build, engine, optimization
from resnet50.training import plan as schedule
from resnet50.training.distributed import Ranks

OPTIMIZERS = {
    "sgd": {"nesterov": True},
    "decoupled": {"decoupled_weight_decay": True},
    "adamw": {"optimizer": "adamw"},
}


def tiny() -> ResNet:
    torch.manual_seed(0)
    return ResNet((1, 1, 1, 1), 8, 7)


def norms_and_biases(model: nn.Module) -> set[int]:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return {id(p) for m in norms for p in m.parameters()} | {id(model.fc.bias)}


def set_gradients(model: nn.Module, generator: torch.Generator) -> list[Tensor]:
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_weight_decay_goes_to_convolutions_and_classifier_alone():
    model = ResNet()
    decayed, others = optimization.build_optimizer(
        model, TrainConfig(weight_decay=1e-4)
    ).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (1e-4, 0.0)
    assert len(decayed["params"]) == 54 and len(others["params"]) == 107
    # downsample.1 among them, which a filter by name misses
    assert norms_and_biases(model) == {id(p) for p in others["params"]}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("blurpool", [False, True])
def test_every_parameter_is_in_one_group_and_decays_as_asked(kind, blurpool):
    model = ResNet(blurpool=blurpool)
    decay = "decoupled_decay" if kind == "decoupled" else "weight_decay"
    for decay_norms in (False, True):
        cfg = TrainConfig(weight_decay=0.03, decay_norms=decay_norms, **OPTIMIZERS[kind])
        groups = optimization.build_optimizer(model, cfg).param_groups
        ids = [id(p) for group in groups for p in group["params"]]
        assert len(ids) == len(set(ids)) == 161 == len(list(model.parameters()))
        assert [len(group["params"]) for group in groups] == [54, 107]
        assert [group[decay] for group in groups] == [0.03, 0.03 if decay_norms else 0.0]
        if kind == "decoupled":  # or SGD would put it into the gradient as well
            assert [group["weight_decay"] for group in groups] == [0.0, 0.0]


@st.composite
def sgd_runs(draw: st.DrawFn) -> dict[str, object]:
    """Settings of SGD, and a learning rate for each of some steps."""
    max_lr = draw(st.floats(1e-3, 4))
    momentum = draw(st.sampled_from([0.0, 0.5, 0.875, 0.9]))
    return {
        "seed": draw(st.integers(0, 2**31)),
        "max_lr": max_lr,
        "momentum": momentum,
        "nesterov": momentum > 0 and draw(st.booleans()),
        "weight_decay": draw(st.sampled_from([0.0, 5e-4, 0.1])),
        "shares": draw(st.lists(st.floats(0, 1), min_size=1, max_size=6)),
    }


@settings(max_examples=60)
@given(sgd_runs())
def test_decoupled_decay_is_composers_loop(run):
    """Composer's DecoupledSGDW: the weight shrinks, then the update is added, neither sees the
    other; lr / initial_lr scales the shrinking."""
    seed, shares = run.pop("seed"), run.pop("shares")
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, generator=generator) for shape in ((4, 3), (4,))]
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    groups = [
        {"params": [parameter], "decoupled_decay": decay}
        for parameter, decay in zip(parameters, (run["weight_decay"], 0.0), strict=True)
    ]
    optimizer = optimization.DecoupledSGD(
        groups,
        max_lr=run["max_lr"],
        lr=run["max_lr"],
        momentum=run["momentum"],
        nesterov=run["nesterov"],
    )
    weights, buffers = [weight.double() for weight in weights], [None, None]
    for share in shares:
        lr = share * run["max_lr"]
        for i, (group, parameter) in enumerate(zip(groups, parameters, strict=True)):
            optimizer.param_groups[i]["lr"] = lr
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            gradient = parameter.grad.double()
            momentum, buffer = run["momentum"], buffers[i]
            buffers[i] = gradient if buffer is None else momentum * buffer + gradient
            update = buffers[i] if momentum else gradient
            if run["nesterov"]:
                update = gradient + momentum * buffers[i]
            weights[i] = weights[i] * (1 - lr / run["max_lr"] * group["decoupled_decay"])
            weights[i] = weights[i] - lr * update
        optimizer.step()
    for parameter, weight in zip(parameters, weights, strict=True):
        torch.testing.assert_close(parameter.detach(), weight.float(), atol=2e-5, rtol=1e-4)


def test_a_parameter_without_gradient_does_not_shrink():
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = optimization.DecoupledSGD(
        [{"params": parameters, "decoupled_decay": 0.5}], max_lr=0.1, lr=0.1
    )
    parameters[0].grad = torch.zeros(3)
    optimizer.step()
    assert parameters[0].tolist() == [0.5] * 3 and parameters[1].tolist() == [1.0] * 3


def in_groups(model: nn.Module, decay: float, decay_norms: bool) -> list[dict]:
    """The same two groups, told apart in another way: what has one dimension is not decayed."""
    wide = [p for p in model.parameters() if p.dim() > 1]
    flat = [p for p in model.parameters() if p.dim() == 1]
    return [
        {"params": wide, "weight_decay": decay},
        {"params": flat, "weight_decay": decay if decay_norms else 0.0},
    ]


@pytest.mark.parametrize("decay_norms", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_sgd_and_adamw_are_torchs(kind, decay_norms):
    cfg = TrainConfig(
        max_lr=0.05, momentum=0.8, weight_decay=0.01, decay_norms=decay_norms, **OPTIMIZERS[kind]
    )
    ours, theirs = tiny(), tiny()
    groups = in_groups(theirs, 0.01, decay_norms)
    if kind == "sgd":
        reference = torch.optim.SGD(groups, lr=0.05, momentum=0.8, nesterov=True, fused=True)
    else:
        reference = torch.optim.AdamW(groups, lr=0.05, betas=(0.8, 0.999), fused=True)
    optimizer = optimization.build_optimizer(ours, cfg)
    for seed in range(4):
        for model in (ours, theirs):
            set_gradients(model, torch.Generator().manual_seed(seed))
        for each in (optimizer, reference):
            each.param_groups[0]["lr"] = each.param_groups[1]["lr"] = 0.05 / (1 + seed)
            each.step()
    assert_same(ours.state_dict(), theirs.state_dict(), kind)


def make_state(**changes: object) -> engine.TrainState:
    cfg = TrainConfig(
        layers=(1, 1, 1, 1), width=8, epochs=10, total_batch_size=8, amp="fp32", **changes
    )
    plan = schedule.Plan(16, 10, 8, 8, 1, 20)
    return build.build_state(cfg, Ranks(), 7, plan)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("max_lr", [0.05, 2.0])
def test_state_survives_a_file_of_tensors(kind, max_lr):
    """Saved, loaded as no code and put into a fresh optimizer, it continues to the same bits."""
    kwargs = {"max_lr": max_lr, "weight_decay": 0.01, **OPTIMIZERS[kind]}
    state = make_state(**kwargs)
    generator = torch.Generator().manual_seed(1)

    def take(each: engine.TrainState, gradients: list[Tensor]) -> None:
        for parameter, gradient in zip(each.model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        each.optimizer.step()
        engine.advance(each, torch.zeros(5, dtype=torch.int64))

    for _ in range(3):
        take(state, set_gradients(state.model, generator))
    file = io.BytesIO()
    torch.save(values_of(state), file)
    file.seek(0)
    other = make_state(seed=1, **kwargs)
    resume.restore(other, torch.load(file, weights_only=True))
    for _ in range(3):
        gradients = set_gradients(state.model, generator)
        take(state, gradients)
        take(other, gradients)
    assert_same(values_of(state), values_of(other), kind)


def shift(model: nn.Module, by: float) -> None:
    """Move every parameter and every buffer, counters by one."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += by if tensor.is_floating_point() else 1


@given(st.floats(0.01, 0.999), st.lists(st.floats(-3, 3), min_size=1, max_size=5))
@settings(max_examples=25)
def test_the_first_update_copies_and_the_others_weigh_one_minus_decay(decay, shifts):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    average = optimization.MovingAverage(model, decay)
    expected = None
    for by in shifts:
        shift(model, by)
        average.update()
        now = {key: value.double() for key, value in model.state_dict().items()}
        if expected is None:
            assert_same(average.module.state_dict(), model.state_dict(), "first")
            expected = now
        for key, value in now.items():
            blend = key != "1.num_batches_tracked"
            expected[key] = decay * expected[key] + (1 - decay) * value if blend else value
    found = average.module.state_dict()
    assert found["1.num_batches_tracked"] == len(shifts)
    for key, value in found.items():
        torch.testing.assert_close(value.double(), expected[key], atol=1e-5, rtol=1e-5, msg=key)


def test_blurs_stay_what_they_are():
    model = ResNet((1, 1, 1, 1), 8, 7, blurpool=True)
    average = optimization.MovingAverage(model, 0.7)
    for _ in range(5):
        average.update()
    kernels = [module.kernel for module in average.module.modules() if hasattr(module, "kernel")]
    assert len(kernels) == 7 and all(
        torch.equal(k, model.maxpool.blur.kernel[:1].expand_as(k)) for k in kernels
    )


@given(st.integers(1, 8192), st.integers(1, 64), st.integers(1, 600), st.floats(1e-9, 1e-3))
def test_rescaled_decay_is_torchvisions(batch, every, epochs, weight):
    """adjust = world_size x batch_size x model_ema_steps / epochs; alpha = min(1, (1 - d) x it)."""
    decay = 1 - max(weight, 1e-6)
    kwargs = {"total_batch_size": batch, "ema_every_steps": every, "epochs": epochs}
    kwargs |= {"ema_decay": decay, "ema_rescale": True}
    alpha = min(1.0, (1 - decay) * (batch * every / epochs))
    if (1 - decay) * (batch * every / epochs) > 1.0001:
        with pytest.raises(ValueError, match="--ema_rescale turns --ema_decay"):
            TrainConfig(**kwargs)
    elif alpha < 0.9999:
        assert TrainConfig(**kwargs).ema_update_decay == pytest.approx(1 - alpha, abs=1e-9)
    assert TrainConfig(ema_decay=decay, epochs=epochs).ema_update_decay == decay


def test_rescaled_decay_has_the_reference_numbers():
    """torchvision's recipe: 8 x 128 images, 32 steps, 600 epochs, 0.99998."""
    cfg = TrainConfig(
        total_batch_size=1024, epochs=600, ema_decay=0.99998, ema_every_steps=32, ema_rescale=True
    )
    assert 1 - cfg.ema_update_decay == pytest.approx(0.00109226667, rel=1e-6)
    for world_size, batch in ((1, 1024), (8, 128)):
        adjust = world_size * batch * 32 / 600
        assert 1 - cfg.ema_update_decay == pytest.approx(min(1.0, (1 - 0.99998) * adjust))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_fused_optimizer_takes_the_same_steps(kind):
    """After real gradients of a channels_last model: a fused step on a CPU pairs elements as they
    lie in memory, so gradients must lie as their weights do (findings/)."""
    ends = []
    for fused in (False, True):
        model = tiny().double().to(memory_format=torch.channels_last)
        cfg = TrainConfig(max_lr=0.01, fused_optimizer=fused, **OPTIMIZERS[kind])
        optimizer = optimization.build_optimizer(model, cfg)
        assert bool(optimizer.defaults["fused"]) == fused
        generator = torch.Generator().manual_seed(1)
        for _ in range(4):
            images = torch.randn(8, 3, 32, 32, generator=generator).double()
            model(images.to(memory_format=torch.channels_last)).square().mean().backward()
            for parameter in model.parameters():
                assert parameter.grad.stride() == parameter.stride()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*ends, rtol=1e-9, atol=1e-9)
