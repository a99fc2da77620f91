"""--mirror with a place that does not fit: one message each, and nothing is overwritten."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from support import s3_server
from support.commands import Result, tiny_flags, train_words
from support.in_process import run_here, tree
from support.pictures import make_folder

import train


@pytest.fixture(scope="module")
def done(image_folder, tmp_path_factory) -> Path:
    """A folder with a run of 4 steps and its mirror. Do not write into it."""
    folder = tmp_path_factory.mktemp("done")
    flags = tiny_flags(image_folder, folder / "run")
    words = train_words(*flags, "--max_steps=4", f"--mirror={folder / 'mirror'}")
    result = run_here(words, folder)
    assert result.code == 0, result.err
    return folder


@pytest.fixture
def place(done, tmp_path) -> Path:
    """A copy of it."""
    shutil.copytree(done, tmp_path / "place")
    return tmp_path / "place"


def without_locks(folder: Path) -> dict[str, str]:
    """What lies there, but for the files of locks, which a start may leave."""
    locks = (".lock", ".supervisor.lock", ".guard", "lock.json")
    return {name: what for name, what in tree(folder).items() if Path(name).name not in locks}


def assert_refused(result: Result, *texts: str) -> None:
    assert result.code == 2, result.out + result.err
    lines = [line for line in result.err.splitlines() if "error: " in line]
    assert len(lines) == 1 and "Traceback" not in result.err, result.err
    for text in texts:
        assert text in lines[0], lines[0]


def refusal(in_process, place: Path, *flags: object, run_dir: str = "new") -> Result:
    """What `python train.py` says; nothing changes but locks, and the run folder that it names."""
    before = without_locks(place)
    result = in_process(train, *flags, f"--run_dir={place / run_dir}", "--device=cpu")
    after = {n: what for n, what in without_locks(place).items() if n != run_dir or n in before}
    assert after == before
    return result


@pytest.fixture
def flags(image_folder, place) -> list[object]:
    """Of the run in `place`, with an empty run folder and its mirror."""
    flags = tiny_flags(image_folder, place / "new")
    return [flag for flag in flags if "run_dir" not in str(flag)] + [f"--mirror={place / 'mirror'}"]


def test_a_place_with_another_run(in_process, place, flags, image_folder):
    other = tiny_flags(image_folder, place / "other")
    assert run_here(train_words(*other, "--max_steps=4"), place).code == 0
    result = refusal(in_process, place, *flags, run_dir="other")
    run = json.loads((place / "run/config.json").read_text())["run"]
    assert_refused(result, "holds another run", run[:8], "give another --mirror")


def test_a_place_with_another_run_for_fresh(in_process, place, flags):
    assert_refused(refusal(in_process, place, *flags, "--fresh"), "--fresh starts another run")


def test_a_place_with_other_settings(in_process, place, flags):
    result = refusal(in_process, place, *flags, "--max_lr=1")
    assert_refused(result, "--max_lr 1.0 (the run has 0.05)", "give a new --mirror")


def test_a_place_with_other_data(in_process, place, flags, tmp_path):
    (tmp_path / "images").mkdir()
    images = make_folder(tmp_path / "images", 20, 5)
    result = refusal(in_process, place, *flags, f"--data_dir={images}")
    assert_refused(result, f"--data_dir {images} is not the data of the run in --mirror")


def test_a_place_with_files_of_others(in_process, place, flags):
    (place / "packs").mkdir()
    (place / "packs/train.pack").write_bytes(b"not to be lost")
    result = refusal(in_process, place, *flags, f"--mirror={place / 'packs'}")
    assert_refused(result, "has other files, such as train.pack, and no run")


def test_a_place_of_a_newer_version(in_process, place, flags):
    pointer = place / "mirror/mirror.json"
    pointer.write_text(pointer.read_text().replace('"format": 1', '"format": 2'))
    assert_refused(refusal(in_process, place, *flags), "a newer version of this program (format 2")


def test_a_run_with_settings_that_this_version_does_not_know(in_process, place, flags):
    config = place / "mirror/config.json"
    config.write_text(config.read_text().replace('"nesterov"', '"nesterov_2"'))
    result = refusal(in_process, place, *flags)
    assert_refused(result, "run of another version of this program (commit", "nesterov_2", "Update")


@pytest.mark.parametrize("text", ["{", '{"format": 1}', '{"format": 1, "copies": [{"step": 4}]}'])
def test_a_damaged_pointer(in_process, place, flags, text):
    (place / "mirror/mirror.json").write_text(text)
    assert_refused(refusal(in_process, place, *flags), "mirror.json: it is damaged")


def test_checkpoints_of_which_none_is_whole(in_process, place, flags):
    for path in (place / "mirror/checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1000])
    result = in_process(train, *flags, f"--run_dir={place / 'new'}", "--device=cpu")
    assert_refused(result, "no checkpoint there is whole")


@pytest.mark.parametrize("run_dir, mirror", [("a", "a/mirror"), ("a/b/c", "a"), ("a", "a")])
def test_a_mirror_and_a_run_folder_within_each_other(in_process, place, flags, run_dir, mirror):
    result = refusal(in_process, place, *flags, f"--mirror={place / mirror}", run_dir=run_dir)
    assert_refused(result, "lie within each other")


@pytest.mark.parametrize(
    "mirror, texts",
    [
        ("gs://bucket/run", ["--mirror gs://...: give s3://BUCKET/PREFIX"]),
        ("s3://key:secret@bucket/run", ["no credentials in the URL"]),
        ("s3://Under_Score/run", ["give s3://BUCKET/PREFIX"]),
        ("nowhere/mirror", ["there is no folder nowhere. Is its disk mounted?"]),
        ("run/config.json", ["is a file"]),
        ("s3://bucket/run", ["s3://bucket/run: no credentials: set AWS_ACCESS_KEY_ID"]),
    ],
)
def test_a_place_that_is_none(in_process, place, flags, monkeypatch, mirror, texts):
    monkeypatch.chdir(place)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    result = refusal(in_process, place, *flags, f"--mirror={mirror}")
    assert_refused(result, *texts)
    assert "secret" not in result.err


def test_without_the_package_it_names_the_command(in_process, place, flags, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    result = refusal(in_process, place, *flags, "--mirror=s3://bucket/run")
    assert_refused(result, "python -m pip install obstore==")


@pytest.mark.parametrize(
    "fault, bucket, text",
    [
        ("fine", "no-such-bucket", "there is no bucket no-such-bucket: make it"),
        ("fault 403 AccessDenied", "bucket", "the server refuses these credentials (AccessDenied)"),
    ],
)
def test_a_bucket_that_cannot_be_used(
    in_process, place, flags, tmp_path, monkeypatch, fault, bucket, text
):
    with s3_server.serve(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.tell(fault)
        result = refusal(in_process, place, *flags, f"--mirror=s3://{bucket}/run")
    assert_refused(result, text)
    assert "-OF-TESTS" not in result.out + result.err


def test_a_folder_that_may_not_be_written(in_process, place, flags):
    """As root may write anywhere: a file stands where its own folder should be."""
    (place / "mirror2").mkdir()
    (place / "mirror2/lock.json").mkdir()
    result = refusal(in_process, place, *flags, f"--mirror={place / 'mirror2'}")
    assert_refused(result, "mirror2/lock.json")
