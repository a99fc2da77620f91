"""Finding a named data set on a volume, as setup_and_train.sh has prepare_data.py do it."""

import sys
from pathlib import Path

import pytest
from support.commands import REPOSITORY, run
from support.pictures import make_folder

from resnet50.packing import downloads


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize("folder", ["", "archives", "a/b"])
@pytest.mark.parametrize(
    "name, file",
    [
        ("tiny-imagenet", "tiny-imagenet-200.zip"),
        ("imagenette", "imagenette2.tgz"),
        ("imagenet", "imagenet-object-localization-challenge.zip"),
        ("mini-imagenet", "mini-imagenet.zip"),
    ],
)
def test_an_archive_is_found_at_most_three_folders_deep(tmp_path, name, file, folder):
    path = touch(tmp_path / folder / file)
    assert downloads.search(name, tmp_path) == path
    assert downloads.search(name, tmp_path.parent / "other") is None
    path.rename(touch(tmp_path / "a" / "b" / "c" / "x").with_name(file))
    assert downloads.search(name, tmp_path) is None


def test_imagenet_is_the_folder_of_its_two_tars(tmp_path):
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        touch(tmp_path / "downloads" / name)
    assert downloads.search("imagenet", tmp_path) == tmp_path / "downloads"


def test_a_download_that_was_interrupted_is_not_taken_for_whole(tmp_path):
    touch(tmp_path / "tiny-imagenet" / ".work" / "tiny-imagenet-200.zip")
    assert downloads.search("tiny-imagenet", tmp_path) is None


def test_two_of_a_kind_are_an_error_that_names_both(tmp_path):
    for folder in ("a", "b"):
        touch(tmp_path / folder / "imagenette2.tgz")
    with pytest.raises(ValueError, match=r"a/imagenette2.tgz, .*b/imagenette2.tgz"):
        downloads.search("imagenette", tmp_path)


def test_what_was_packed_by_hand_is_taken_as_it_is(tmp_path):
    folder = make_folder(tmp_path / "tiny-imagenet-200", 4, 2)
    script, out = REPOSITORY / "prepare_data.py", tmp_path / "packed"
    by_hand = run([sys.executable, script, folder, f"--out={out}"], cwd=tmp_path)
    assert by_hand.code == 0, by_hand.err
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    words = [sys.executable, script, "tiny-imagenet", f"--search={tmp_path}", f"--out={out}"]
    result = run(words, cwd=tmp_path)
    assert result.code == 0 and "is packed already" in result.out, result.err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "val.pack").unlink()
    refused = run(words, cwd=tmp_path)
    assert refused.code == 2 and "made with other options" in refused.err


def test_only_named_data_sets_are_searched_for(tmp_path):
    script = REPOSITORY / "prepare_data.py"
    words = [sys.executable, script, tmp_path, f"--search={tmp_path}", f"--out={tmp_path}/out"]
    result = run(words, cwd=tmp_path)
    assert result.code == 2 and "--search is for one of imagenet" in result.err
