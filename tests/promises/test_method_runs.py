"""Methods through the real commands: an early end, weights to start from, mirrored evaluation."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from support.commands import run, tiny_flags, train_words
from support.in_process import run_here
from support.pictures import STEPS_PER_EPOCH
from support.runs import assert_same, newest_checkpoint, status_of
from torch import Tensor

import evaluate
from model import ResNet
from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.data import crops
from resnet50.data import splits as data
from resnet50.data.batch import normalize
from resnet50.data.loader import Loader
from resnet50.records import checkpoint
from resnet50.run import initial_weights
from resnet50.training import build, engine
from resnet50.training.device import Precision
from resnet50.training.distributed import Ranks
from resnet50.training.plan import eval_keys

FP32 = Precision(torch.device("cpu"), torch.float32)


def contents_of(run_dir: Path) -> dict:
    return torch.load(newest_checkpoint(run_dir), weights_only=True)


def eval_batches(image_folder: Path, contents: dict):
    """The validation split as the run of a checkpoint evaluates it."""
    cfg = TrainConfig.from_json(contents["config"])
    _, split = data.open_dataset(image_folder)
    images = crops.EvalImages(split, cfg.eval_resize)
    loader = Loader([images], cfg.device_batch_size, cfg.eval_crop, 0, FP32.device)
    return loader.batches(0, eval_keys(21, cfg.device_batch_size, cfg.eval_crop))


def test_a_target_ends_the_run_as_done_and_a_higher_one_lets_it_go_on(image_folder, tmp_path):
    """Both as a rank and as users call it, where the supervisor must see that it may continue."""
    run_dir = tmp_path / "run"
    words = train_words(*tiny_flags(image_folder, run_dir), "--num_workers=1")
    first = run_here([*words, "--target_top1=1"], tmp_path)
    assert first.code == 0, first.err
    status, rows = status_of(run_dir), contents_of(run_dir)["rows"]
    assert status["state"] == "done" and status["step"] == STEPS_PER_EPOCH
    assert [row["step"] for row in rows] == [STEPS_PER_EPOCH] and rows[0]["val_top1"] >= 1
    assert status["best_top1"] == max(row["val_top1"] for row in rows)
    again = run([*words, "--target_top1=100"], tmp_path)
    assert again.code == 0, again.err
    assert f"resuming at step {status['step']}" in again.out
    ended = status_of(run_dir)
    assert ended["state"] == "done"
    assert ended["step"] == 3 * STEPS_PER_EPOCH or ended["best_top1"] == 100


def set_up(image_folder: Path, init_from: Path, **changes: object) -> build.Parts:
    """A new tiny run in this process, up to its first step."""
    settings = {**RECIPES["tiny"].settings, "amp": "fp32", "seed": 7, "init_from": str(init_from)}
    cfg, splits = TrainConfig(**{**settings, **changes}), data.open_dataset(image_folder)
    return build.set_up(
        cfg, Ranks(), splits, weights=initial_weights.read(cfg, splits.train.classes)[0]
    )


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_other_classes_get_the_head_that_the_seed_gives(image_folder, tmp_path, prefix, loss):
    """From a file of torchvision's keys; everything but the head is the file's."""
    weights = ResNet((1, 1, 1, 1), 8, 10, zero_init_gamma=False).state_dict()
    torch.save({prefix + key: value for key, value in weights.items()}, tmp_path / "weights.pt")
    with_file = set_up(image_folder, tmp_path / "weights.pt", loss=loss).state.model.state_dict()
    fresh = set_up(image_folder, "", loss=loss).state.model.state_dict()
    for key, value in with_file.items():
        assert torch.equal(value, fresh[key] if key.startswith("fc.") else weights[key]), key


def test_wrong_files_are_named_with_their_option(image_folder, tmp_path):
    text, other = tmp_path / "text.pt", tmp_path / "other.pt"
    text.write_text("no tensors")
    torch.save(ResNet((1, 2, 1, 1), 8, 3).state_dict(), other)
    strange = ResNet((1, 1, 1, 1), 8, 3).state_dict() | {"layer1.0.more": torch.zeros(1)}
    torch.save(strange, tmp_path / "strange.pt")
    damaged = checkpoint.save(tmp_path, 3, {"model": ResNet((1, 1, 1, 1), 8, 3).state_dict()})
    contents = bytearray(damaged.read_bytes())
    contents[1000] ^= 1
    damaged.write_bytes(contents)
    for path, reason in (
        (text, "is not a file of tensors"),
        (other, "the weights are of another network: give --layers 1,2,1,1 too"),
        (tmp_path / "strange.pt", "these weights are not this model's: unexpected"),
        (damaged, "is damaged"),
        (tmp_path / "none.pt", "no such file or folder"),
        (tmp_path, "neither a run with a checkpoint nor an export"),
    ):
        with pytest.raises(ValueError, match=reason) as refused:
            set_up(image_folder, path)
        assert "--init_from" in str(refused.value) and str(path) in str(refused.value)


def test_weights_are_needed_once_and_a_resume_does_without(image_folder, tmp_path):
    path, run_dir = tmp_path / "weights.pt", tmp_path / "run"
    words = train_words(*tiny_flags(image_folder, run_dir), f"--init_from={path}")
    missing = run_here(words, tmp_path)
    assert missing.code == 2 and "Traceback" not in missing.err
    assert f"error: --init_from {path}: no such file or folder" in missing.err
    assert status_of(run_dir)["state"] == "config error"
    torch.save(ResNet((1, 1, 1, 1), 8, 10).state_dict(), path)
    first = run_here([*words, "--max_steps=2"], tmp_path)
    assert first.code == 0, first.err
    path.unlink()
    again = run_here([*words, "--max_steps=3"], tmp_path)
    assert again.code == 0 and "resuming at step 2" in again.out, again.err
    assert contents_of(run_dir)["step"] == 3


@pytest.fixture(scope="module")
def source(image_folder, tmp_path_factory) -> Path:
    """The run folder of a finished run with blurpool and averaged weights, two epochs."""
    run_dir = tmp_path_factory.mktemp("source") / "run"
    flags = [*tiny_flags(image_folder, run_dir), "--blurpool", "--epochs=2"]
    result = run_here(train_words(*flags), run_dir.parent)
    assert result.code == 0, result.err
    return run_dir


def test_a_run_from_a_checkpoint_begins_where_that_ones_average_ended(source, image_folder):
    contents = contents_of(source)
    state = set_up(image_folder, newest_checkpoint(source), blurpool=True, ema_decay=0.9).state
    assert_same(state.model.state_dict(), contents["ema"], "model")
    assert_same(state.eval_model.state_dict(), contents["ema"], "average")
    assert state.step == 0 and not state.optimizer.state
    predict = partial(engine.predict, state.model.eval(), precision=FP32)
    sums = engine.evaluate(predict, eval_batches(image_folder, contents), 21, Ranks())
    last, found = contents["rows"][-1], engine.means(sums)
    assert {name: last[f"val_{name}"] for name in found} == found


def evaluated(image_folder: Path, weights: Path, *flags: str) -> dict:
    """evaluate.py's result, in this process."""
    path = weights.parent / f"result{len(flags)}.json"
    words = [f"--data_dir={image_folder}", f"--weights={weights}", "--num_workers=0"]
    assert evaluate.main([*words, f"--json={path}", *flags]) == 0
    return json.loads(path.read_text())


def hits(logits: Tensor, labels: Tensor, k: int) -> float:
    ranked = logits.argsort(1, descending=True)[:, :k]
    return 100 * (ranked == labels[:, None]).any(1).double().mean().item()


def test_evaluate_repeats_a_blurred_runs_figures_and_adds_the_mirrored(source, image_folder):
    contents = contents_of(source)
    plain = evaluated(image_folder, newest_checkpoint(source))
    both = evaluated(image_folder, newest_checkpoint(source), "--flip")
    assert both.keys() - plain.keys() == {"flip_top1", "flip_top5"}
    assert all(both[key] == value for key, value in plain.items())
    for name in ("loss", "top1", "top5"):
        assert plain[name] == contents["rows"][-1][f"val_{name}"]
    model = ResNet((1, 1, 1, 1), 8, 3, blurpool=True).eval()
    model.load_state_dict(contents["ema"])
    logits, labels = [], []
    for batch in eval_batches(image_folder, contents):
        images = normalize(batch.images)
        with torch.no_grad():
            logits.append((model(images) + model(images.flip(3))) / 2)
        labels.append(batch.labels)
    found = partial(hits, torch.cat(logits), torch.cat(labels))
    assert both["flip_top1"] == pytest.approx(found(1))
    assert both["flip_top5"] == pytest.approx(found(3))  # there are three classes


def test_mirrored_pictures_have_the_same_flip_averaged_logits(source, image_folder):
    contents = contents_of(source)
    model = ResNet((1, 1, 1, 1), 8, 3, blurpool=True).eval()
    model.load_state_dict(contents["ema"])
    batch = next(iter(eval_batches(image_folder, contents)))
    mirrored = batch._replace(flips=~batch.flips)
    predict = torch.no_grad()(partial(engine.predict, model, precision=FP32))
    torch.testing.assert_close(
        predict(batch=batch, with_flip=True), predict(batch=mirrored, with_flip=True)
    )
    one, other = predict(batch=batch), predict(batch=mirrored)
    assert not torch.allclose(one, other)
    torch.testing.assert_close(predict(batch=batch, with_flip=True), (one + other) / 2)
