"""The contents of a run's folder: another program's files are left unchanged, and a run whose own
files are missing or truncated resumes, or is refused with a remedy."""

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from support.commands import Result, tiny_flags
from support.in_process import be_rank, tree
from support.runs import events_of, saved_steps, status_of

import train
from resnet50.records import checkpoint, ownership, run_folder, status
from resnet50.system import files
from resnet50.system.locking import FolderLock

FOREIGN = {
    "best": ("checkpoints/best.pt", "mine"),
    "a step": ("checkpoints/step_000000100.pt", "mine"),
    "a save": ("checkpoints/best.pt.partial", "mine"),
    "metrics": ("metrics.csv", "epoch,accuracy\n1,70\n"),
    "a log": ("log.jsonl", '{"loss": 1}\n'),
    "Hugging Face's config": ("config.json", '{"architectures": ["ResNet"]}'),
    "settings": ("config.json", '{"settings": {"theme": "dark"}}'),
    "no JSON": ("config.json", "epochs = 3"),
    "an empty config": ("config.json", ""),
    "a status": ("status.json", '{"state": "open"}'),
    "a list": ("status.json", "[]"),
    "curves": ("curves.png", "mine"),
    "a record": ("record.json", '{"best": 1}'),
    "a range test": ("lr_finder/result.json", '{"lr": 1}'),
    "events": ("budget_events.jsonl", '{"event": "open"}\n'),
    "a lock": (".lock", "poetry"),
    "a time": (".paid_ms", "soon"),
    "no folder": ("checkpoints", "mine"),
    "no file": ("config.json/mine", "mine"),
}
STARTS = {
    "supervised": ([], False),
    "fresh": (["--fresh"], False),
    "overwrite": (["--fresh", "--overwrite"], False),
    "a rank": ([], True),
    "a fresh rank": (["--fresh"], True),
}


@pytest.fixture(scope="module")
def ran(image_folder, tmp_path_factory) -> Path:
    """The folder of a run of six steps of twelve, saved at each, best at its first evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        be_rank(patch)
        run_dir = tmp_path_factory.mktemp("ran") / "run"
        flags = [*tiny_flags(image_folder, run_dir), "--max_steps=6", "--spot_watch=off"]
        assert train.main(list(map(str, flags))) == 0
    return run_dir


@pytest.fixture
def copied(ran, tmp_path) -> Path:
    """A copy of it as users make them: file by file, without hard links."""
    return shutil.copytree(ran, tmp_path / "run")


def go_on(in_process, run_dir: Path, *flags: object, steps: int = 7) -> Result:
    words = [f"--run_dir={run_dir}", f"--max_steps={steps}", *flags]
    return in_process(train, *words, as_rank=True)


def assert_refused(result: Result, *texts: object) -> None:
    assert result.code == 2, result.out + result.err
    (line,) = (line for line in result.err.splitlines() if "error: " in line)
    assert all(str(text) in line for text in texts), line


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_folder_of_another_program_is_refused_and_left_as_it_was(
    in_process, image_folder, tmp_path, kind
):
    name, text = FOREIGN[kind]
    run_dir = tmp_path / "theirs"
    (run_dir / name).parent.mkdir(parents=True)
    (run_dir / name).write_text(text)
    (run_dir / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    for flags, as_rank in STARTS.values():
        words = [*tiny_flags(image_folder, run_dir), *flags]
        result = in_process(train, *words, as_rank=as_rank)
        named = "config.json" if kind == "no file" else name
        assert_refused(result, f"--run_dir {run_dir}: its {named} is", "give another --run_dir")
        assert tree(tmp_path) == before


def test_a_picture_beside_a_copied_checkpoint_is_not_ours(in_process, image_folder, copied):
    for name in (*ownership.FILES, "status.json"):
        (copied / name).unlink(missing_ok=True)
    (copied / "curves.png").write_text("mine")
    before = tree(copied)
    result = in_process(train, *tiny_flags(image_folder, copied))
    assert_refused(result, "its curves.png is")
    assert tree(copied) == before


@pytest.mark.parametrize("start", ["supervised", "overwrite", "a rank"])
def test_a_copied_checkpoint_does_not_make_the_files_around_it_ours(
    in_process, image_folder, copied, start
):
    flags, as_rank = STARTS[start]
    (copied / "status.json").unlink()
    for name in ("config.json", "metrics.csv", "log.jsonl"):
        (copied / name).write_text("mine")
    before = tree(copied)
    words = [*tiny_flags(image_folder, copied), *flags]
    assert_refused(in_process(train, *words, as_rank=as_rank), "its log.jsonl is")
    assert tree(copied) == before


def test_other_files_are_no_obstacle_and_stay(in_process, image_folder, tmp_path):
    theirs = ["notes.txt", "checkpoints/model.pth", "checkpoints/epoch_3.partial", "train/a.jpg"]
    for name in theirs:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("mine")
    flags = [*tiny_flags(image_folder, tmp_path / "run"), "--max_steps=1"]
    assert in_process(train, *flags, as_rank=True).code == 0
    assert max(saved_steps(tmp_path / "run")) == 1
    assert all((tmp_path / "run" / name).read_text() == "mine" for name in theirs)
    ownership.remove_run(tmp_path / "run")
    left = {name for name, what in tree(tmp_path / "run").items() if what != "folder"}
    assert left == {*theirs, ".lock", ".heartbeat"}


def test_what_is_no_checkpoint_is_kept_under_another_name(in_process, copied):
    best = copied / "checkpoints" / "best.pt"
    best.write_text("mine")
    (copied / "checkpoints" / "best.pt.corrupt").write_text("mine too")
    result = go_on(in_process, copied)
    assert result.code == 0 and "renamed to best.pt.corrupt.2" in result.out
    assert best.with_name("best.pt.corrupt").read_text() == "mine too"
    assert best.with_name("best.pt.corrupt.2").read_text() == "mine"
    best.write_text("mine again")
    ownership.remove_run(copied)
    assert best.with_name("best.pt.corrupt.3").read_text() == "mine again"
    assert not saved_steps(copied) and not (copied / "config.json").exists()


def test_without_step_files_a_run_goes_on_from_best(in_process, copied):
    step = checkpoint.load(copied / "checkpoints" / "best.pt")["step"]
    for path in (copied / "checkpoints").glob("step_*.pt"):
        path.unlink()
    best = (copied / "checkpoints" / "best.pt").read_bytes()
    result = go_on(in_process, copied, steps=step)
    assert f"resuming from best.pt, the checkpoint of step {step}" in result.out
    assert result.code == 0 and saved_steps(copied) == {step}
    assert (copied / "checkpoints" / "best.pt").read_bytes() == best
    assert len((copied / "metrics.csv").read_text().splitlines()) >= 2


@pytest.mark.parametrize("best", ["gone", "cut"])
def test_without_any_checkpoint_results_are_not_begun_anew(in_process, copied, best):
    for path in (copied / "checkpoints").glob("step_*.pt"):
        path.unlink()
    path = copied / "checkpoints" / "best.pt"
    path.unlink() if best == "gone" else path.write_bytes(path.read_bytes()[:-9])
    before = tree(copied)
    if best == "gone":  # by the supervisor too, or it would take the ranks' refusal for a crash
        supervised = in_process(train, f"--run_dir={copied}", "--max_steps=0", "--device=cpu")
        assert_refused(supervised, copied, "put best.pt", "--fresh --overwrite")
        (copied / ".supervisor.lock").unlink()
    result = go_on(in_process, copied)
    remedy = "put best.pt" if best == "gone" else "Put a good copy there"
    assert_refused(result, copied, remedy, "--fresh --overwrite")
    after = tree(copied)
    if best == "cut":  # reported after the start was logged
        assert status_of(copied)["state"] == "config error"
        before["status.json"] = after["status.json"]
    assert after == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(in_process, copied):
    shutil.rmtree(copied / "checkpoints")
    changed = status_of(copied) | {"state": "running", "saved_step": -1}
    (copied / "status.json").write_text(json.dumps(changed))
    assert go_on(in_process, copied, steps=1).code == 0


@pytest.mark.parametrize("name, how", [("config.json", "cut"), ("status.json", "cut")])
def test_a_run_goes_on_without_what_its_checkpoints_know(in_process, copied, name, how):
    path = copied / name
    whole = damage(path, how)
    result = go_on(in_process, copied)
    assert result.code == 0, result.err
    assert result.out.count(f"warning: {path}") == 1
    assert "resuming at step 6 of 7" in result.out and max(saved_steps(copied)) == 7
    assert json.loads(path.read_text()).keys() >= json.loads(whole).keys() - {"remaining_s"}


def damage(path: Path, how: str) -> str:
    """Returns what the file held."""
    whole = path.read_text()
    path.unlink()
    if how != "gone":
        path.write_text(whole[: len(whole) // 2 if how == "cut" else 0])
    return whole


@pytest.mark.parametrize("how", ["gone", "empty", "cut"])
def test_settings_come_from_a_checkpoint_where_config_has_none(copied, how):
    settings = run_folder.read_settings(copied)
    damage(copied / "status.json", how)
    assert status.known_status(copied) == {}
    assert len(run_folder.problems(copied)) == 1
    damage(copied / "config.json", how)
    assert run_folder.read_settings(copied) == settings
    assert len(run_folder.problems(copied)) == 2
    ownership.refuse_foreign(copied)


def test_without_settings_and_checkpoints_the_remedy_is_named(in_process, copied):
    shutil.rmtree(copied / "checkpoints")
    (copied / "config.json").write_text("{")
    assert_refused(go_on(in_process, copied), "config.json cannot be read", "--fresh --overwrite")


def test_a_start_that_ended_before_its_settings_were_written_may_be_repeated(
    in_process, image_folder, tmp_path
):
    """A spot notice in the range test of --max_lr auto leaves a log and nothing else."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "log.jsonl").write_text('{"kind": "event", "step": 0, "text": "spot notice"}\n')
    flags = [*tiny_flags(image_folder, run_dir), "--max_steps=1"]
    assert in_process(train, *flags, as_rank=True).code == 0
    assert events_of(run_dir)[0] == "spot notice"


def test_another_programs_record_in_a_runs_folder_is_not_replaced(in_process, copied):
    (copied / "record.json").write_text('{"best": 1}')  # runs once wrote none
    before = tree(copied)
    assert_refused(go_on(in_process, copied), "its record.json is")
    assert tree(copied) == before


def test_replacing_a_run_keeps_what_other_programs_put_beside_it(copied):
    theirs = (
        *("lr_finder/curve.csv", "lr_finder/result.json", "tensorboard/events.out.tfevents.1"),
        "record.json",
    )
    for name in theirs:
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_text('{"lr": 1}')
    ownership.remove_run(copied)
    assert set(theirs) <= tree(copied).keys() and not ownership.has_run(copied)


def test_a_disk_that_syncs_no_folders_keeps_checkpoints_and_says_so(in_process, copied):
    real, number = os.fsync, errno.EINVAL

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    in_process.monkeypatch.setattr(os, "fsync", fsync)
    assert go_on(in_process, copied).code == 0
    assert max(saved_steps(copied)) == 7
    warnings = [text for text in events_of(copied) if text.startswith("warning")]
    assert len(warnings) == 1 and "a power cut may cost the newest" in warnings[0]
    number = errno.ENOTSUP
    files.sync_folder(copied)
    number = errno.EIO
    assert not files.folder_sync_problem(copied)
    with pytest.raises(OSError, match="Input/output error"):
        files.sync_folder(copied)


def test_a_disk_without_locks_is_named_and_trained_on(in_process, copied):
    number = errno.ENOLCK

    def lockf(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    in_process.monkeypatch.setattr(fcntl, "lockf", lockf)
    result = go_on(in_process, copied)
    assert result.code == 0 and result.out.count("this disk has no locks") == 1
    for number in (errno.ENOSYS, errno.EOPNOTSUPP):  # noqa: B007 (lockf reads it)
        assert "this disk has no locks" in FolderLock(copied).missing


def test_a_lock_that_is_held_is_still_refused(in_process, copied):
    def lockf(*_: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    in_process.monkeypatch.setattr(fcntl, "lockf", lockf)
    assert_refused(go_on(in_process, copied), "is in use by process")


def test_the_commit_of_a_run_is_that_of_this_code(monkeypatch, tmp_path):
    """Whatever repository the environment points git to, as in a hook."""
    before = run_folder.commit()
    subprocess.run(["git", "init", "--quiet", "--bare", tmp_path], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    assert run_folder.commit() == before
