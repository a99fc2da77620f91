"""repository.py on real clones: whatever is asked for, no local change is lost."""

import json
import os
import pty
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.commands import host_words

SCRIPT = host_words("repository")
WHO = {
    f"GIT_{who}_{what}": "someone@localhost"
    for who in ("AUTHOR", "COMMITTER")
    for what in ("NAME", "EMAIL")
}


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | WHO,
    )
    return done.stdout.strip()


@dataclass
class Clones:
    """Two clones of one repository: `there` is where upstream is worked on, `here` the host's."""

    here: Path
    there: Path

    def upstream_gets(self, **files: str) -> str:
        """Commit files to upstream; the commit."""
        for name, text in files.items():
            (self.there / name).write_text(text)
        git(self.there, "add", "--all")
        git(self.there, "commit", "--quiet", "--message", "upstream's")
        git(self.there, "push", "--quiet")
        return git(self.there, "rev-parse", "HEAD")

    def change(self) -> None:
        """Staged, staged and then changed again, unstaged, deleted, and untracked."""
        (self.here / "staged").write_text("staged by me\n")
        (self.here / "both").write_text("staged first\n")
        git(self.here, "add", "staged", "both")
        (self.here / "both").write_text("then changed\n")
        (self.here / "unstaged").write_text("changed by me\n")
        (self.here / "deleted").unlink()
        (self.here / "untracked").write_text("new by me\n")

    def state(self) -> tuple[str, dict[str, str]]:
        """What git status says, and every file's content."""
        files = [path for path in self.here.iterdir() if path.is_file()]
        return git(self.here, "status", "--porcelain"), {p.name: p.read_text() for p in files}

    def update(self, way: str = "", *flags: str) -> subprocess.CompletedProcess:
        words = ["--on_local_changes", way] if way else []
        return subprocess.run(
            [*SCRIPT, f"--folder={self.here}", f"--runs={self.here}/runs", *words, *flags],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )

    def backup(self) -> str:
        """The one backup ref."""
        (ref,) = git(self.here, "for-each-ref", "--format=%(refname)", "refs/backup").splitlines()
        return ref


@pytest.fixture
def clones(tmp_path) -> Clones:
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "origin")
    for name in ("there", "here"):
        git(tmp_path, "clone", "--quiet", "origin", name)
        if name == "there":
            git(tmp_path / name, "checkout", "--quiet", "-b", "main")
            for file in ("staged", "both", "unstaged", "deleted", "same"):
                (tmp_path / name / file).write_text(f"{file} as it was\n")
            (tmp_path / name / ".gitignore").write_text("runs/\n")
            git(tmp_path / name, "add", "--all")
            git(tmp_path / name, "commit", "--quiet", "--message", "first")
            git(tmp_path / name, "push", "--quiet", "--set-upstream", "origin", "main")
    return Clones(tmp_path / "here", tmp_path / "there")


def assert_backed_up(clones: Clones) -> None:
    """Every change of Clones.change is in the backup, staged content apart from the files'."""
    ref = clones.backup()
    assert git(clones.here, "show", f"{ref}:staged") == "staged by me"
    assert git(clones.here, "show", f"{ref}:both") == "then changed"
    assert git(clones.here, "show", f"{ref}^2:both") == "staged first"
    assert git(clones.here, "show", f"{ref}:unstaged") == "changed by me"
    assert git(clones.here, "show", f"{ref}:untracked") == "new by me"
    assert "deleted" not in git(clones.here, "ls-tree", "--name-only", ref).splitlines()


def test_a_clean_clone_moves_forward(clones):
    newest = clones.upstream_gets(same="newer\n")
    result = clones.update()
    assert result.returncode == 0 and "fast-forwarded" in result.stdout
    assert git(clones.here, "rev-parse", "HEAD") == newest
    assert clones.update().stdout.count("\n") == 1  # nothing more to do


@pytest.mark.parametrize("conflict", [False, True])
@pytest.mark.parametrize("way", ["", "fail", "keep"])
def test_fail_and_keep_change_nothing(clones, way, conflict):
    clones.change()
    clones.upstream_gets(**{"unstaged" if conflict else "same": "upstream's\n"})
    before, head = clones.state(), git(clones.here, "rev-parse", "HEAD")
    result = clones.update(way)
    assert result.returncode == (2 if way == "fail" else 0)
    for name in ("staged", "both", "unstaged", "deleted", "untracked"):
        assert name in result.stdout + result.stderr
    assert clones.state() == before and git(clones.here, "rev-parse", "HEAD") == head


@pytest.mark.parametrize("conflict", [False, True])
def test_backup_saves_and_goes_forward_where_it_can(clones, conflict):
    clones.change()
    newest = clones.upstream_gets(**{"unstaged" if conflict else "same": "upstream's\n"})
    before = clones.state()
    result = clones.update("backup")
    assert result.returncode == 0, result.stderr
    assert_backed_up(clones)
    assert (git(clones.here, "rev-parse", "HEAD") == newest) != conflict
    status, files = clones.state()
    assert status == before[0]
    assert {**files, "same": ""} == {**before[1], "same": ""}


def test_merge_brings_both_together(clones):
    clones.change()
    newest = clones.upstream_gets(same="upstream's\n")
    before = clones.state()
    result = clones.update("merge")
    assert result.returncode == 0, result.stderr
    assert_backed_up(clones)
    assert git(clones.here, "rev-parse", "HEAD") == newest
    assert clones.state() == (before[0], {**before[1], "same": "upstream's\n"})
    assert not git(clones.here, "stash", "list")


@pytest.mark.parametrize("name", ["staged", "both", "unstaged", "untracked"])
def test_a_merge_with_a_conflict_leaves_all_as_it_was(clones, name):
    clones.change()
    clones.upstream_gets(**{name: "upstream's\n"})
    before, head = clones.state(), git(clones.here, "rev-parse", "HEAD")
    result = clones.update("merge")
    assert result.returncode == 2 and "all is as before" in result.stderr
    assert clones.state() == before and git(clones.here, "rev-parse", "HEAD") == head
    assert_backed_up(clones)
    assert git(clones.here, "diff", "--cached", "--name-only").split() == ["both", "staged"]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_merge_that_was_killed_is_undone_and_done_over(clones, steps):
    """As it stands after the note was written, after the stash, and after the merge."""
    clones.change()
    newest = clones.upstream_gets(same="upstream's\n")
    before, head = clones.state(), git(clones.here, "rev-parse", "HEAD")
    assert clones.update("backup").returncode == 0
    git(clones.here, "reset", "--soft", head)
    git(clones.here, "checkout", head, "--", "same")
    assert clones.state() == before
    (clones.here / ".git" / "SETUP_MERGE").write_text(f"{clones.backup()} {head}\n")
    if steps > 1:
        git(clones.here, "stash", "push", "--include-untracked", "--quiet")
    if steps > 2:
        git(clones.here, "merge", "--quiet", newest)
    result = clones.update("merge")
    assert result.returncode == 0, result.stderr
    assert clones.state() == (before[0], {**before[1], "same": "upstream's\n"})
    assert git(clones.here, "rev-parse", "HEAD") == newest


def test_a_second_backup_of_the_same_is_the_first(clones):
    clones.change()
    clones.upstream_gets(unstaged="upstream's\n")
    for _ in range(2):
        assert clones.update("backup").returncode == 0
    assert clones.backup()


def test_reset_wants_a_yes_and_saves_first(clones):
    clones.change()
    newest = clones.upstream_gets(unstaged="upstream's\n", untracked="upstream's too\n")
    before = clones.state()
    refused = clones.update("reset")
    assert refused.returncode == 2 and "--yes" in refused.stderr and clones.state() == before
    result = clones.update("reset", "--yes")
    assert result.returncode == 0, result.stderr
    assert git(clones.here, "rev-parse", "HEAD") == newest
    assert clones.state()[0] == "" and (clones.here / "deleted").exists()
    assert (clones.here / "untracked").read_text() == "upstream's too\n"
    assert_backed_up(clones)


@pytest.mark.parametrize("way", ["merge", "reset"])
def test_commits_of_ones_own_are_kept_or_saved(clones, way):
    (clones.here / "mine").write_text("mine\n")
    git(clones.here, "add", "mine")
    git(clones.here, "commit", "--quiet", "--message", "mine")
    mine = git(clones.here, "rev-parse", "HEAD")
    newest = clones.upstream_gets(same="upstream's\n")
    assert clones.update(way, "--yes").returncode == 0
    assert git(clones.here, "merge-base", newest, "HEAD") == newest
    assert git(clones.here, "merge-base", mine, clones.backup()) == mine
    assert (clones.here / "mine").exists() == (way == "merge")


@pytest.mark.parametrize("way", ["", "keep", "backup", "merge", "reset"])
def test_the_code_stays_under_a_run_with_checkpoints(clones, way):
    clones.change()
    clones.upstream_gets(same="upstream's\n")
    run = clones.here / "runs" / "one"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step_000000001.pt").touch()
    (run / "status.json").write_text(json.dumps({"state": "interrupted"}))
    before, head = clones.state(), git(clones.here, "rev-parse", "HEAD")
    result = clones.update(way, "--yes")
    assert result.returncode == 0 and "has checkpoints" in result.stdout
    assert clones.state() == before and git(clones.here, "rev-parse", "HEAD") == head
    if way in ("backup", "merge", "reset"):
        assert clones.update(way, "--yes", "--allow_code_change").returncode == 0
        assert git(clones.here, "rev-parse", "HEAD") != head


def test_without_a_network_it_goes_on(clones):
    git(clones.here, "remote", "set-url", "origin", "/nowhere/at/all")
    result = clones.update()
    assert result.returncode == 0 and "warning: git fetch" in result.stdout


@pytest.mark.parametrize("answer, code", [(b"fail\n", 2), (b"\n", 0), (b"burn\n", 2)])
def test_on_a_terminal_it_asks(clones, answer, code):
    clones.change()
    clones.upstream_gets(same="upstream's\n")
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [*SCRIPT, f"--folder={clones.here}", f"--runs={clones.here}/runs"],
        stdin=end,
        stdout=end,
        stderr=end,
    )
    os.close(end)
    shown = b""
    while b"] " not in shown:
        shown += os.read(terminal, 1000)
    assert b"fail, keep, backup, merge, reset" in shown
    os.write(terminal, answer)
    assert process.wait(timeout=60) == code
    os.close(terminal)


def test_outside_of_git_the_code_is_taken_as_it_is(tmp_path):
    result = subprocess.run([*SCRIPT, f"--folder={tmp_path}"], capture_output=True, text=True)
    assert result.returncode == 0 and "is not a git clone" in result.stdout
