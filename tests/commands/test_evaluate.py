"""What evaluate.py writes of its images, and every way to name the weights."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from support.commands import (
    ONE_RANK,
    REPOSITORY,
    Result,
    run,
    tiny_flags,
    torchrun_words,
    train_words,
)
from support.pictures import CLASSES, VAL_PER_CLASS
from support.runs import newest_checkpoint

from model import ResNet
from resnet50.inference import mistakes, pretrained

NUM_IMAGES = len(CLASSES) * VAL_PER_CLASS


@pytest.fixture(scope="module")
def run_dir(image_folder, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    result = run(train_words(*tiny_flags(image_folder, run_dir)), run_dir.parent, **ONE_RANK)
    assert result.code == 0, result.err
    return run_dir


def evaluate(cwd: Path, *flags: object) -> Result:
    return run([sys.executable, REPOSITORY / "evaluate.py", "--num_workers=1", *flags], cwd)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def directly(run_dir: Path, path: Path) -> torch.Tensor:
    """Probabilities (K,) of one picture, without the loader."""
    loaded = pretrained.load(str(run_dir))
    with torch.inference_mode():
        return loaded.model(loaded.pixels(Image.open(path)))[0].softmax(0)


def test_every_image_has_its_own_prediction_on_any_number_of_ranks(image_folder, run_dir, tmp_path):
    flags = [f"--data_dir={image_folder}", f"--weights={run_dir}", "--csv=found.csv", "--flip"]
    assert evaluate(tmp_path, *flags).code == 0
    rows = rows_of(tmp_path / "found.csv")
    assert len(rows) == NUM_IMAGES == len({row["image"] for row in rows})
    for row in rows:
        expected = directly(run_dir, Path(row["image"]))
        order = expected.argsort(descending=True)
        assert [row[f"class{n}"] for n in (1, 2, 3)] == [CLASSES[number] for number in order]
        found = [float(row[f"confidence{n}"]) for n in (1, 2, 3)]
        assert found == pytest.approx(expected[order].tolist(), abs=2e-4)
    flags[2] = "--csv=ranks.csv"
    assert run(torchrun_words(2, "evaluate.py", "--num_workers=1", *flags), tmp_path).code == 0
    assert (tmp_path / "ranks.csv").read_text() == (tmp_path / "found.csv").read_text()


def test_a_report_agrees_with_the_figures(image_folder, run_dir, tmp_path):
    flags = [f"--data_dir={image_folder}", f"--weights={run_dir}", "--report=report"]
    result = evaluate(tmp_path, *flags, "--csv=found.csv", "--json=result.json")
    assert result.code == 0, result.err
    figures = json.loads((tmp_path / "result.json").read_text())
    rows = rows_of(tmp_path / "report" / "per_class.csv")
    assert sorted(row["class"] for row in rows) == list(CLASSES)
    assert sum(int(row["images"]) for row in rows) == NUM_IMAGES
    assert np.mean([float(row["top1"]) for row in rows]) == pytest.approx(figures["top1"], abs=0.01)
    assert float(rows[0]["top1"]) == min(float(row["top1"]) for row in rows)
    taken = [
        (Path(row["image"]).parent.name, row["class1"]) for row in rows_of(tmp_path / "found.csv")
    ]
    for row in rows_of(tmp_path / "report" / "confused_pairs.csv"):
        assert taken.count((row["class"], row["taken_for"])) == int(row["times"]) > 0
    for name in ("confusion.png", "worst_classes.png", "mistakes.png"):
        with Image.open(tmp_path / "report" / name) as picture:
            assert picture.width >= 500


def test_pictures_of_a_report_have_every_name_or_say_so_once(tmp_path, capfd, recwarn):
    """Dollar signs are not math; characters without a font give one note and no warnings."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    cases = (
        ("cost_$5", "$a$b", ""),
        ("plain", "\ufdd0\ufdd1", "characters that no installed font"),
    )
    for first, second, note in cases:
        labels, top = np.array([0, 1, 1]), np.array([[1, 0], [1, 0], [0, 1]])
        names, sure = (first, second), np.full((3, 2), 0.5)
        mistakes.write_report(tmp_path, names, labels, top, sure, lambda _: pixels)
        err = capfd.readouterr().err
        assert note in err and len(err.splitlines()) == bool(note)
    users = (warning for warning in recwarn if issubclass(warning.category, UserWarning))
    assert not [str(warning.message) for warning in users]


def test_a_host_without_a_home_gets_no_remarks_of_matplotlib(tmp_path):
    """Its cache of fonts then has no folder, which is nothing that a user could fix."""
    (tmp_path / "file").touch()
    words = [sys.executable, "-c", "from resnet50.records import curves"]
    env = {"MPLCONFIGDIR": str(tmp_path / "file" / "folder"), "PYTHONPATH": str(REPOSITORY)}
    result = run(words, tmp_path, **env)
    assert (result.code, result.out, result.err) == (0, "", "")


def test_pictures_without_classes_and_kaggles_form(image_folder, run_dir, tmp_path):
    (tmp_path / "test" / "deep").mkdir(parents=True)
    for name, source in (("b.JPEG", "bee/000.jpg"), ("deep/a.jpg", "ant/001.jpg")):
        (tmp_path / "test" / name).write_bytes((image_folder / "val" / source).read_bytes())
    (tmp_path / "test" / "broken.jpg").write_bytes(b"no picture")
    flags = ["--images=test", f"--weights={run_dir}", "--csv=c.csv", "--submission=s.csv"]
    result = evaluate(tmp_path, *flags)
    assert result.code == 0 and "cannot be decoded" in result.err, result.err
    assert "top1" not in json.loads(result.out)
    assert [row["image"] for row in rows_of(tmp_path / "c.csv")] == [
        "test/b.JPEG",
        "test/broken.jpg",
        "test/deep/a.jpg",
    ]
    rows = rows_of(tmp_path / "s.csv")
    assert [row["ImageId"] for row in rows] == ["b", "broken", "a"]
    width, height = Image.open(tmp_path / "test" / "b.JPEG").size
    words = rows[0]["PredictionString"].split()
    assert sorted(words[::5]) == list(CLASSES) and words[1:5] == ["0", "0", str(width), str(height)]


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--weights=nothing"], "--weights nothing: no such file or folder"),
        (["--weights=empty"], "--weights empty is neither a run with a checkpoint nor an export"),
        (["--csv=no/such/folder.csv"], "--csv no/such/folder.csv cannot be written"),
        (["--images=empty", "--report=r"], "--report needs the true classes"),
        (["--images=empty"], "--images needs an output file: --csv FILE"),
        (["--images=empty", "--csv=c.csv"], "--images empty has no pictures"),
        (["--images=gone", "--csv=c.csv"], "--images gone: no such folder"),
    ],
)
def test_mistakes_end_with_2_before_anything_is_computed(
    image_folder, run_dir, tmp_path, flags, text
):
    (tmp_path / "empty").mkdir()
    usual = [f"--weights={run_dir}"]
    if not any(flag.startswith("--images") for flag in flags):
        usual += [f"--data_dir={image_folder}"]
    result = evaluate(tmp_path, *usual, *flags)
    assert result.code == 2 and text in result.err and "Traceback" not in result.err, result.err


def test_a_submission_has_ids_that_are_known_or_is_refused(image_folder, run_dir, tmp_path):
    foreign = tmp_path / "foreign.pt"
    torch.save(pretrained.load(str(run_dir)).model.state_dict(), foreign)
    flags = [f"--data_dir={image_folder}", f"--weights={foreign}", "--submission=s.csv"]
    result = evaluate(tmp_path, *flags)
    assert result.code == 2 and "--submission: the class ids of" in result.err, result.err
    torch.save(ResNet((1, 1, 1, 1), 8, 1000).state_dict(), foreign)
    ids = pretrained.load(str(foreign)).class_ids
    assert len(ids) == 1000 and ids[0] == "n01440764" and ids == sorted(ids)


def test_other_classes_in_the_same_number_are_refused(image_folder, run_dir, tmp_path):
    for name in ("ant", "bee", "dog"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "0.jpg").write_bytes(
            (image_folder / "val" / "ant" / "000.jpg").read_bytes()
        )
    result = evaluate(tmp_path, f"--data_dir={tmp_path}", f"--weights={run_dir}")
    assert result.code == 2 and "class 2 is dog there, and cat here" in result.err, result.err


def exported(folder: Path, weights: dict, config: dict) -> Path:
    folder.mkdir()
    save_file(weights, folder / pretrained.WEIGHTS)
    (folder / pretrained.CONFIG).write_text(json.dumps(config))
    return folder


def test_a_run_its_checkpoint_and_an_export_are_the_same_model(run_dir, tmp_path):
    of_run = pretrained.load(str(run_dir))
    assert of_run.classes == list(CLASSES) and of_run.kind == "EMA"
    assert of_run.about["top1"] is not None and of_run.about["recipe"] == "tiny"
    weights = {key: value.contiguous() for key, value in of_run.model.state_dict().items()}
    config = {"label_names": of_run.folders, "training": {"image_size": 32, "resize_size": 32}}
    folder = exported(tmp_path / "export", weights, config)
    images = torch.rand(2, 3, 32, 32)
    for source in (run_dir / "checkpoints" / "best.pt", folder, folder / pretrained.WEIGHTS):
        other = pretrained.load(str(source))
        assert other.classes == of_run.classes and other.image_size == of_run.image_size == 32
        assert torch.equal(other.model(images), of_run.model(images))
    trained = pretrained.load(str(newest_checkpoint(run_dir)), raw=True)
    assert trained.kind == "trained" and not torch.equal(
        trained.model(images), of_run.model(images)
    )


@pytest.mark.parametrize("what", ["classes", "weights", "config", "tensors"])
def test_a_damaged_export_is_named(run_dir, tmp_path, what):
    loaded = pretrained.load(str(run_dir))
    weights = {key: value.contiguous() for key, value in loaded.model.state_dict().items()}
    names = loaded.folders + ["one more"] * (what == "classes")
    if what == "tensors":
        del weights["layer1.0.conv1.weight"]
    folder = exported(tmp_path / "export", weights, {"label_names": names})
    if what in ("weights", "config"):
        path = folder / (pretrained.WEIGHTS if what == "weights" else pretrained.CONFIG)
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"--weights {folder}"):
        pretrained.load(str(folder))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60))
def test_tables_count_every_image_once(pairs):
    labels, predicted = np.array(pairs).T
    names = [f"name {number}" for number in range(7)]
    matrix = mistakes.confusion(labels, predicted, 7)
    assert matrix.sum() == len(pairs) and all(matrix[pair] == pairs.count(pair) for pair in pairs)
    rows = mistakes.per_class(names, labels, predicted[:, None])
    assert sum(row["images"] for row in rows) == len(pairs)
    right = sum(row["images"] * row["top1"] / 100 for row in rows)
    assert right == pytest.approx((labels == predicted).sum(), abs=0.01)
    wrong = mistakes.confused_pairs(names, matrix)
    assert sum(row["times"] for row in wrong) == (labels != predicted).sum()
