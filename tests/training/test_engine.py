"""One step, one evaluation, averages: against plain torch."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from support.runs import values_of
from torch import nn
from torch.nn import functional

from model import ResNet
from resnet50.config.train_config import TrainConfig
from resnet50.data.batch import Batch, normalize
from resnet50.run import resume
from resnet50.training import build, engine
from resnet50.training.device import LateCounter, Precision, choose_precision
from resnet50.training.distributed import Ranks
from resnet50.training.engine import StepContext
from resnet50.training.plan import make_plan

CPU = torch.device("cpu")
FP32 = Precision(CPU, torch.float32)


def tiny(num_classes: int = 7) -> ResNet:
    torch.manual_seed(0)
    return ResNet((1, 1, 1, 1), 8, num_classes)


def make_state(cfg: TrainConfig, fp16: bool = False) -> engine.TrainState:
    cfg = replace(cfg, layers=(1, 1, 1, 1), width=8, epochs=1, channels_last=False)
    plan = make_plan(replace(cfg, device_batch_size=1), 20 * cfg.total_batch_size)
    state = build.build_state(cfg, Ranks(), 7, plan)
    state.scaler = torch.amp.GradScaler("cpu", enabled=fp16)
    return state


def make_batch(seed: int, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 7, (size,), generator=generator)
    return Batch(images, labels, torch.rand(size, generator=generator) < 0.5, [])


def step(state: engine.TrainState, batches: list[Batch], cfg: TrainConfig) -> torch.Tensor:
    return engine.train_step(state, batches, StepContext(cfg, FP32, Ranks(), state.model))


def test_a_step_is_plain_torchs():
    cfg = TrainConfig(max_lr=0.1, nesterov=True, label_smoothing=0.1, weight_decay=0.0)
    state, reference, batch = make_state(cfg), tiny().train(), make_batch(1)
    sums = step(state, [batch], cfg)
    optimizer = torch.optim.SGD(reference.parameters(), state.lr, 0.9, nesterov=True)
    logits = reference(normalize(batch.images, batch.flips))
    loss = functional.cross_entropy(logits, batch.labels, label_smoothing=0.1)
    loss.backward()
    optimizer.step()
    for (name, ours), theirs in zip(
        state.model.state_dict().items(), reference.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert engine.means(sums)["loss"] == pytest.approx(loss.item(), abs=1e-5)
    hits = (logits.argmax(1) == batch.labels).float().mean().item()
    assert engine.means(sums)["top1"] == pytest.approx(100 * hits)


def test_accumulated_gradients_are_means_and_running_statistics_the_first_batchs():
    cfg = TrainConfig(weight_decay=0.0, clip_grad_norm=1e9)
    state, reference = make_state(cfg), tiny().train()
    batches = [make_batch(seed) for seed in range(3)]
    gradients = {}
    hook = state.optimizer.register_step_pre_hook(
        lambda *_: gradients.update(
            {name: p.grad.clone() for name, p in state.model.named_parameters()}
        )
    )
    step(state, batches, cfg)
    hook.remove()
    for i, batch in enumerate(batches):
        if i == 1:
            expected = {name: b.clone() for name, b in reference.named_buffers()}
        logits = reference(normalize(batch.images, batch.flips))
        (functional.cross_entropy(logits, batch.labels) / 3).backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)
    for name, buffer in state.model.named_buffers():
        assert torch.equal(buffer, expected[name]), name


def test_clipping_bounds_the_gradient_and_a_large_bound_changes_nothing():
    ends = []
    for bound in (0.0, 1e9, 1e-3):
        cfg = TrainConfig(clip_grad_norm=bound, weight_decay=0.0, momentum=0.0, max_lr=1.0)
        state = make_state(cfg)
        before = nn.utils.parameters_to_vector(state.model.parameters()).clone()
        lr = state.lr
        step(state, [make_batch(1)], cfg)
        moved = nn.utils.parameters_to_vector(state.model.parameters()) - before
        ends.append(moved.norm().item() / lr)
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)
    assert ends[2] == pytest.approx(1e-3, rel=1e-2) and ends[0] > 1e-2


def test_the_average_is_an_exponential_one_of_weights_and_statistics():
    cfg = TrainConfig(ema_decay=0.8, max_lr=0.5)
    state = make_state(cfg)
    expected = None
    for seed in range(4):
        step(state, [make_batch(seed)], cfg)
        now = {key: value.clone() for key, value in state.model.state_dict().items()}
        if expected is None:
            expected = now
        for key, value in now.items():
            blend = value.is_floating_point()
            expected[key] = 0.8 * expected[key] + 0.2 * value if blend else value
    for key, value in state.eval_model.state_dict().items():
        torch.testing.assert_close(value, expected[key], msg=key)
    assert state.eval_model is not state.model
    assert make_state(TrainConfig()).ema is None


def test_state_survives_a_round_trip_under_another_seed():
    cfg = TrainConfig(ema_decay=0.9, cycle_momentum=True)
    state = make_state(cfg, fp16=True)
    for seed in range(3):
        engine.advance(state, step(state, [make_batch(seed)], cfg))
    saved = copy.deepcopy(values_of(state))
    torch.manual_seed(99)
    other = make_state(cfg, fp16=True)
    for parameter in other.model.parameters():
        nn.init.normal_(parameter)
    resume.restore(other, saved)
    for s in (state, other):
        engine.advance(s, step(s, [make_batch(9)], cfg))
    one, two = values_of(state), values_of(other)
    assert one["step"] == two["step"] == 4 and one["scheduler"] == two["scheduler"]
    assert one["scaler"] == two["scaler"] and one["num_averaged"] == two["num_averaged"] == 4
    for part in ("model", "ema"):
        assert all(torch.equal(one[part][key], two[part][key]) for key in one[part])


def test_fp16_scales_gradients_and_a_skipped_step_counts():
    cfg = TrainConfig(amp="fp16")
    state = make_state(cfg, fp16=True)
    fp16 = Precision(CPU, torch.float16)
    before = state.model.fc.weight.clone()
    state.model.fc.weight.register_hook(lambda grad: grad * math.inf)
    context = StepContext(cfg, fp16, Ranks(), state.model)
    sums = engine.train_step(state, [make_batch(1)], context)
    engine.advance(state, sums)
    assert torch.equal(state.model.fc.weight, before) and state.step == 1
    assert state.scaler.get_scale() == 2.0**15  # halved from its first 2**16


def test_evaluation_counts_as_plain_torch_does():
    model = tiny(num_classes=12)
    batches = [make_batch(seed, size) for seed, size in ((1, 8), (2, 8), (3, 5))]
    predict = partial(engine.predict, model.eval(), precision=FP32)
    nothing = make_batch(4, 0)  # what a rank gets that has fewer batches than the others
    sums = engine.evaluate(predict, [*batches, nothing], 21, Ranks())
    with torch.no_grad():
        logits = torch.cat([model(normalize(b.images, b.flips)) for b in batches])
    labels = torch.cat([b.labels for b in batches])
    ranked = logits.argsort(1, descending=True)
    assert sums[engine.TOP1] == (ranked[:, 0] == labels).sum()
    assert sums[engine.TOP5] == (ranked[:, :5] == labels[:, None]).sum()
    loss = functional.cross_entropy(logits, labels).item()
    assert engine.means(sums)["loss"] == pytest.approx(loss, abs=1e-5)


def predict_zeros(batch: Batch) -> torch.Tensor:
    return torch.zeros(len(batch.labels), 7)


def test_evaluation_that_missed_an_image_is_an_error():
    with pytest.raises(AssertionError, match="counted 8 of 9 images"):
        engine.evaluate(predict_zeros, [make_batch(1)], 9, Ranks())


def test_evaluation_stops_when_told():
    batches = iter([make_batch(1)] * 3)
    assert engine.evaluate(predict_zeros, batches, 24, Ranks(), lambda: True) is None
    assert len(list(batches)) == 2


def test_a_loss_that_is_not_finite_is_counted_and_leaves_the_sums_whole():
    losses = torch.tensor([1.0, math.nan])
    logits, labels = torch.eye(7)[:2], torch.arange(2)
    sums = engine.batch_sums(logits, labels, losses)
    assert sums.tolist() == [0, 2, 2, 2, 1]
    model = tiny()
    assert engine.all_finite(model)
    model.layer2[0].bn1.running_var[3] = math.inf
    assert not engine.all_finite(model)


def test_fewer_than_five_classes_make_top5_certain():
    sums = engine.batch_sums(torch.eye(3), torch.arange(3), torch.zeros(3))
    assert sums.tolist() == [0, 3, 3, 3, 0]


def test_precision_follows_the_request_and_the_hardware():
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        precision = choose_precision(name, CPU)
        assert precision.dtype == dtype and precision.name == name
    features = torch.cpu.get_capabilities()
    fast = features.get("amx_bf16") or features.get("avx512_bf16")
    assert choose_precision("auto", CPU).name == ("bf16" if fast else "fp32")


def test_the_late_counter_is_not_late_on_a_cpu():
    assert LateCounter(CPU).read(torch.tensor(3)) == 3
