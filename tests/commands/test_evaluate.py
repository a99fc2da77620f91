"""What evaluate.py writes of its images, and every way to name the weights."""

import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from support.commands import (
    REPOSITORY,
    Result,
    run,
    tiny_flags,
    torchrun_words,
    train_words,
)
from support.in_process import run_here
from support.pictures import CLASSES, VAL_PER_CLASS, make_picture
from support.runs import newest_checkpoint

import evaluate as evaluate_command
from evaluate import main
from model import ResNet
from resnet50.data import class_order
from resnet50.data.class_names import imagenet_names
from resnet50.inference import mistakes, pretrained
from resnet50.training.distributed import Ranks

NUM_IMAGES = len(CLASSES) * VAL_PER_CLASS


@pytest.fixture(scope="module")
def run_dir(image_folder, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    result = run_here(train_words(*tiny_flags(image_folder, run_dir)), run_dir.parent)
    assert result.code == 0, result.err
    return run_dir


def evaluate(cwd: Path, *flags: object) -> Result:
    return run_here([sys.executable, REPOSITORY / "evaluate.py", "--num_workers=1", *flags], cwd)


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
    # Others may be about what earlier tests left to the garbage collector.
    of_pictures = (w for w in recwarn if "matplotlib" in w.filename or "resnet50" in w.filename)
    assert not [str(warning.message) for warning in of_pictures]


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
        (["--images=c.jpg", "--csv=c.jpg"], "--csv and --images are both c.jpg"),
        (["--images=gone", "--csv=c.csv"], "--images gone: no such file or folder"),
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
    torch.save({"model": ResNet((1, 1, 1, 1), 8, 1000).state_dict(), "epoch": 5}, foreign)
    ids = pretrained.load(str(foreign)).class_ids
    assert len(ids) == 1000 and ids[0] == "n01440764" and ids == sorted(ids)


def test_a_foreign_checkpoint_is_used_as_its_folder_says(image_folder, tmp_path, capsys):
    """timm's mean, size, crop and interpolation, for every picture of the split."""
    torch.manual_seed(1)
    model = ResNet((1, 1, 1, 1), 8, 3, zero_init_gamma=False).eval()
    looks = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 48, 48], "crop_pct": 0.8}
    looks |= {"interpolation": "bicubic"}
    config = {"architecture": "resnet50", "pretrained_cfg": looks}
    folder = exported(tmp_path / "timm", model.state_dict(), config)
    flags = [f"--data_dir={image_folder}", f"--weights={folder}", f"--csv={tmp_path}/found.csv"]
    assert main([*flags, "--num_workers=0"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["image_size"], result["resize_size"], result["kind"]) == (48, 60, "weights")
    assert "48 px of 60, bicubic, mean 0.5 0.5 0.5" in printed.err
    for row in rows_of(tmp_path / "found.csv"):
        found = [float(row[f"confidence{n}"]) for n in (1, 2, 3)]
        expected = directly(folder, Path(row["image"])).sort(descending=True).values
        assert found == pytest.approx(expected.tolist(), abs=2e-4)


def test_weights_that_are_not_finite_are_no_result(image_folder, tmp_path, capsys):
    """Batches of infinite loss are left out of the mean: it would be 0."""
    state = ResNet((1, 1, 1, 1), 8, 3).state_dict()
    state["layer1.0.bn1.weight"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    assert main([f"--data_dir={image_folder}", f"--weights={tmp_path}/nan.pth"]) == 2
    text = f"--weights {tmp_path}/nan.pth: layer1.0.bn1.weight has values that are not finite"
    assert text in capsys.readouterr().err


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


def in_process(capfd, *flags: object) -> Result:
    """evaluate.py in this process, to save the seconds of importing torch."""
    code = evaluate_command.main(["--num_workers=0", *map(str, flags)])
    out, err = capfd.readouterr()
    return Result(code, out, err)


def small_split(root: Path, names: Sequence[bytes]) -> Path:
    """val/CLASS/FILE for every name: a different picture each."""
    for seed, name in enumerate(names):
        place = root / "val" / os.fsdecode(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        make_picture(seed, seed % 3).save(place, "JPEG")
    return root


def test_file_names_that_are_no_text_lose_nothing(run_dir, tmp_path, capfd):
    names = [b"ant/bild_\xfc.jpg", b"bee/b.jpg", b"cat/c\n.jpg", b"cat/\xff\xfe.jpg"]
    data = small_split(tmp_path / "data", names)
    (data / "val" / os.fsdecode(names[3])).write_bytes(b"no picture")
    files = [f"--{name}={tmp_path / name}" for name in ("csv", "json", "submission", "report")]
    result = in_process(capfd, f"--data_dir={data}", f"--weights={run_dir}", *files)
    assert result.code == 0 and "Traceback" not in result.err, result.err
    assert json.loads(result.out) == json.loads((tmp_path / "json").read_text())
    for name, column in (("csv", "image"), ("submission", "ImageId")):
        text = (tmp_path / name).read_text("utf-8", "surrogateescape")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        paths = [str(data / "val" / os.fsdecode(file)) for file in sorted(names)]
        expected = paths if name == "csv" else [Path(path).stem for path in paths]
        assert [row[column] for row in rows] == expected
    assert (tmp_path / "report" / "mistakes.png").exists()


def test_a_class_folder_whose_name_is_no_text_is_named(run_dir, tmp_path, capfd):
    data = small_split(tmp_path, [b"caf\xe9/1.jpg", b"bee/1.jpg", b"cat/1.jpg"])
    result = in_process(capfd, f"--data_dir={data}", f"--weights={run_dir}")
    assert result.code == 2 and r"class caf\xe9 is not UTF-8: rename it" in result.err, result.err


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--csv={here}"], "--csv {here} cannot be written: Is a directory"),
        (["--json={here}/" + "n" * 300], "cannot be written: File name too long"),
        (["--submission=/proc/new"], "--submission /proc/new cannot be written"),
        (["--csv={here}/best.pt"], "--csv {here}/best.pt exists, and is not an earlier output"),
        (["--json={here}/config.json"], "--json {here}/config.json exists, and is not an earlier"),
        (["--submission={here}/best.pt"], "--submission {here}/best.pt exists, and is not"),
        (["--report={here}"], "--report {here}: its mistakes.png is not from a report"),
        (["--csv={here}/a", "--json={here}/a"], "--csv and --json are both {here}/a"),
        (["--report={here}/file"], "--report {here}/file cannot be written: it is a file"),
        (["--report={here}/file/below"], "below cannot be written: Not a directory"),
    ],
)
def test_outputs_are_tried_before_anything_is_done(tmp_path, capfd, flags, text):
    theirs = ("best.pt", "config.json", "file", "mistakes.png")
    for name in theirs:
        (tmp_path / name).write_text("kept")
    words = [word.format(here=tmp_path) for word in flags]
    result = in_process(capfd, f"--data_dir={tmp_path}", "--weights=nothing", *words)
    assert result.code == 2 and text.format(here=tmp_path) in result.err, result.err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        theirs, "kept"
    )


def test_what_the_disk_refuses_is_kept_elsewhere(
    image_folder, run_dir, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    flags = [f"--data_dir={image_folder}", f"--weights={run_dir}"]
    result = in_process(capfd, *flags, "--csv=/dev/full", "--json=/dev/full")
    assert result.code == 2 and json.loads(result.out)["num_images"] == NUM_IMAGES
    assert "--csv /dev/full could not be written: No space left on device; it was" in result.err
    kept = sorted(tmp_path.glob("kept_*/full"), key=lambda path: path.stat().st_size)
    assert json.loads(kept[0].read_text()) == json.loads(result.out)
    assert len(rows_of(kept[1])) == NUM_IMAGES


NUMBERS = {  # class folders, names that the weights have; the logit of each folder, in sorted order
    "as text is as numbers": (("0", "1", "2"), (), [0, 1, 2]),
    "to eleven": (map(str, range(12)), (), [0, 1, 10, 11, *range(2, 10)]),
    "padded": ((f"{number:02}" for number in range(12)), (), list(range(12))),
    "from one, below ten": (map(str, range(1, 10)), (), list(range(9))),
    "from one": (map(str, range(1, 13)), (), "from 1 to 12, and nothing says which"),
    "the kit's": (map(str, range(1, 1001)), (), "the numbers of ImageNet's development kit"),
    "the kit's, padded": ((f"{n:04}" for n in range(1, 1001)), (), "development kit"),
    "with gaps": (("5", "10", "20"), (), "from 5 to 20, and nothing"),
    "ImageNet's words": (imagenet_names().values(), (), "named after ImageNet's classes"),
    "ImageNet's ids": (imagenet_names(), (), list(range(1000))),
    "words": (("bee", "ant", "cat"), (), [0, 1, 2]),
    "the weights' words": (("bee", "ant", "cat"), ("cat", "ant", "bee"), [1, 2, 0]),
    "the weights' numbers": (("1", "2", "10"), ("1", "2", "10"), [0, 2, 1]),
}  # fmt: skip


@pytest.mark.parametrize("case", NUMBERS)
def test_foreign_weights_take_numbered_folders_by_number(case):
    folders, known, expected = NUMBERS[case]
    folders = sorted(folders)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            class_order.labels_of(folders, known, "val")
    else:
        assert class_order.labels_of(folders, known, "val") == expected


def test_a_picture_in_folder_10_has_label_10_for_foreign_weights(tmp_path, capfd):
    names = [f"{number}/{k}.jpg".encode() for number in range(12) for k in range(2)]
    data, weights = small_split(tmp_path, names), tmp_path / "plain.pth"
    torch.save(ResNet((1, 1, 1, 1), 8, 12).state_dict(), weights)
    flags = [f"--data_dir={data}", f"--weights={weights}", "--image_size=32"]
    args = evaluate_command.build_parser().parse_args(flags)
    split = evaluate_command.open_images(args, pretrained.load(str(weights)), Ranks())
    for index, label in enumerate(split.labels):
        assert Path(split.name(index)).parent.name == str(label) == split.classes[label]
    assert "10 is class 10 of the weights" in capfd.readouterr().err
    assert in_process(capfd, *flags, f"--csv={tmp_path / 'csv'}").code == 0
    assert rows_of(tmp_path / "csv")[0]["class1"].startswith("class ")


def test_pictures_are_turned_as_in_training_and_without_classes_always(run_dir, tmp_path, capfd):
    """Our runs train on upright pictures; if a checkpoint does not say, pictures stay as stored."""
    exif, image = Image.Exif(), make_picture(5, 1).resize((60, 44))
    exif[0x0112] = 6
    for name in ("ant", "bee", "cat"):
        (tmp_path / "turned" / "val" / name).mkdir(parents=True)
        (tmp_path / "upright" / "val" / name).mkdir(parents=True)
        lying = image.transpose(Image.Transpose.ROTATE_90)
        lying.save(tmp_path / "turned" / "val" / name / "1.png", exif=exif)
        image.save(tmp_path / "upright" / "val" / name / "1.png")
    contents = torch.load(run_dir / "checkpoints" / "best.pt", weights_only=True)
    assert contents["config"].pop("upright") == "yes"
    torch.save(contents, tmp_path / "before.pt")
    torch.save(contents["model"], tmp_path / "foreign.pt")

    def found(folder: str, weights: object, *flags: str) -> list[list[str]]:
        where = "--images" if "--images" in flags else "--data_dir"
        words = [f"{where}={tmp_path / folder}", f"--weights={weights}", f"--csv={tmp_path / 'c'}"]
        words += [flag for flag in flags if flag != "--images"]
        sizes = ["--image_size=32", "--resize_size=36"]
        assert in_process(capfd, *words, *sizes).code == 0
        return [list(row.values())[1:] for row in rows_of(tmp_path / "c")]

    before, foreign = tmp_path / "before.pt", tmp_path / "foreign.pt"
    for weights, flags, is_turned in (
        (run_dir, [], True),
        (run_dir, ["--upright=no"], False),
        (before, [], False),
        (before, ["--upright=yes"], True),
        (before, ["--images"], True),
        (foreign, [], True),
    ):
        same = found("turned", weights, *flags) == found("upright", weights, *flags)
        assert same == is_turned, (weights, flags)
