"""repository.py on real clones: whatever is asked for, no local change is lost."""

import http.server
import json
import os
import pty
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.clones import clone as support_clone
from support.commands import REPOSITORY, host_words, processes_mentioning

from host import clone
from resnet50.system.git import ELSEWHERE

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

    def update(self, way: str = "", *flags: str, **more: str) -> subprocess.CompletedProcess:
        words = ["--on_local_changes", way] if way else []
        return subprocess.run(
            [*SCRIPT, f"--folder={self.here}", f"--runs={self.here}/runs", *words, *flags],
            env=os.environ | more,
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


def kill_a_merge(clones: Clones, newest: str, steps: int) -> Path:
    """Leave what it does: after the note was written, after files are set aside, and merged."""
    before, head = clones.state(), git(clones.here, "rev-parse", "HEAD")
    assert clones.update("backup").returncode == 0
    git(clones.here, "reset", "--soft", head)
    git(clones.here, "checkout", head, "--", "same")
    assert clones.state() == before
    note = clones.here / ".git" / "SETUP_MERGE"
    note.write_text(f"{clones.backup()} {head} {newest}\n")
    if steps > 1:
        git(clones.here, "read-tree", clones.backup())
        git(clones.here, "reset", "--hard", "--quiet", head)
    if steps > 2:
        git(clones.here, "merge", "--quiet", newest)
    return note


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_merge_that_was_killed_is_undone_and_done_over(clones, steps):
    clones.change()
    newest = clones.upstream_gets(same="upstream's\n")
    before = clones.state()
    kill_a_merge(clones, newest, steps)
    result = clones.update("merge")
    assert result.returncode == 0, result.stderr
    assert clones.state() == (before[0], {**before[1], "same": "upstream's\n"})
    assert git(clones.here, "rev-parse", "HEAD") == newest


@pytest.mark.parametrize(
    "steps, what",
    [(1, "edit"), (3, "edit"), (1, "new file"), (3, "commit"), (1, "damaged note"), (3, "no text")],
)
def test_what_came_after_a_merge_was_killed_is_left_alone(clones, steps, what):
    clones.change()
    note = kill_a_merge(clones, clones.upstream_gets(same="upstream's\n"), steps)
    text = f"rm {note}"
    if what in ("damaged note", "no text"):
        note.write_text("refs/backup/x 12\n" if what == "damaged note" else "")
    else:
        (clones.here / ("newer" if what == "new file" else "unstaged")).write_text("newer\n")
    if what == "commit":
        git(clones.here, "commit", "--quiet", "--all", "--message", "newer")
        text = f"commit {git(clones.here, 'rev-parse', 'HEAD')[:12]}"
    before, head = clones.state(), git(clones.here, "rev-parse", "HEAD")
    result = clones.update("reset", "--yes")
    assert result.returncode == 2 and text in result.stderr, result.stdout
    assert clones.state() == before and git(clones.here, "rev-parse", "HEAD") == head
    note.unlink()
    assert clones.update("keep").returncode == 0 and clones.state() == before


def submodule(clones: Clones) -> None:
    """One with changed content, which git status lists and git stash does not save."""
    git(clones.there, "-c", "protocol.file.allow=always", "submodule", "add", "../origin", "sub")
    clones.upstream_gets()
    git(clones.here, "pull", "--quiet")
    git(clones.here, "-c", "protocol.file.allow=always", "submodule", "update", "--init")
    (clones.here / "sub" / "same").write_text("mine\n")


ODD_CHANGES = {
    "with git add -N": lambda clones: git(clones.here, "add", "-N", "untracked"),
    "staged though ignored": lambda clones: git(clones.here, "add", "-f", "an.ignored"),
    "in a submodule": submodule,
}


@pytest.mark.parametrize("what", ODD_CHANGES)
def test_a_merge_keeps_odd_changes_and_the_users_own_stash(clones, what):
    (clones.here / "same").write_text("stashed\n")
    git(clones.here, "stash", "push", "--quiet")
    stash = git(clones.here, "rev-parse", "refs/stash")
    (clones.here / ".git" / "info" / "exclude").write_text("*.ignored\n")
    for name in ("untracked", "an.ignored"):
        (clones.here / name).write_text("mine\n")
    ODD_CHANGES[what](clones)
    (clones.here / "an.ignored").write_text("mine, changed\n")
    newest, before = clones.upstream_gets(both="upstream's\n"), clones.state()
    result = clones.update("merge")
    assert result.returncode == 0, result.stderr
    assert clones.state()[1] == {**before[1], "both": "upstream's\n"}
    assert git(clones.here, "rev-parse", "HEAD") == newest
    assert git(clones.here, "rev-parse", "refs/stash") == stash
    assert git(clones.here, "stash", "list").count("\n") == 0


def test_a_merge_that_cannot_begin_leaves_no_note(clones):
    clones.change()
    clones.upstream_gets(same="upstream's\n")
    before = clones.state()
    (clones.here / ".git" / "index.lock").touch()
    result = clones.update("merge")
    assert result.returncode == 2 and "index.lock" in result.stderr
    (clones.here / ".git" / "index.lock").unlink()
    assert clones.state() == before and not (clones.here / ".git" / "SETUP_MERGE").exists()


@pytest.mark.parametrize(
    "way, name",
    [*(("", name) for name in ("mine", "mine/deep", "runs"))]
    + [(way, "mine") for way in ("backup", "merge", "reset")],
)
def test_an_ignored_file_is_not_replaced_by_upstreams(clones, way, name):
    """As a file, as a folder where upstream has a file, and the other way around."""
    mine = clones.here / ("runs/mine" if name == "runs" else "mine")
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("secret\n")
    (clones.here / ".git" / "info" / "exclude").write_text("mine\n")
    (clones.there / name).parent.mkdir(exist_ok=True)
    (clones.there / ".gitignore").unlink()
    clones.upstream_gets(**{name: "upstream's\n"})
    if way:
        (clones.here / "same").write_text("mine, too\n")
    head = git(clones.here, "rev-parse", "HEAD")
    result = clones.update(way, "--yes")
    assert result.returncode == 2 and str(mine.relative_to(clones.here)) in result.stderr
    assert mine.read_text() == "secret\n" and git(clones.here, "rev-parse", "HEAD") == head
    mine.rename(clones.here.parent / "renamed")
    assert clones.update(way, "--yes").returncode == 0


def test_another_repository_of_the_environment_is_not_touched(clones, tmp_path):
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", "origin", "other")
    before = git(other, "rev-parse", "HEAD")
    newest = clones.upstream_gets(same="upstream's\n")
    (clones.here / "unstaged").write_text("mine\n")
    dot_git, index = str(other / ".git"), str(other / ".git" / "index")
    result = clones.update("merge", GIT_DIR=dot_git, GIT_WORK_TREE=str(other), GIT_INDEX_FILE=index)
    assert result.returncode == 0, result.stderr
    assert git(clones.here, "rev-parse", "HEAD") == newest
    assert git(other, "rev-parse", "HEAD") == before and not git(other, "status", "--porcelain")
    assert not git(other, "for-each-ref", "refs/backup")


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
    """Whichever of the folders of runs it is in."""
    clones.change()
    clones.upstream_gets(same="upstream's\n")
    run = clones.here / "runs" / "one"
    runs = ["--runs", "/no/such/folder", str(run.parent)]
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step_000000001.pt").touch()
    (run / "status.json").write_text(json.dumps({"state": "interrupted"}))
    before, head = clones.state(), git(clones.here, "rev-parse", "HEAD")
    result = clones.update(way, "--yes", *runs)
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


@pytest.fixture
def my_ssh(tmp_path) -> str:
    """A deploy key's, which knows no options; it runs here what ssh would run on the server."""
    ssh = tmp_path / "my_ssh"
    ssh.write_text('#!/bin/sh\ncase $1 in -*) exit 1 ;; esac\nshift; exec sh -c "$*"\n')
    ssh.chmod(0o755)
    return str(ssh)


@pytest.mark.parametrize("way", ["GIT_SSH_COMMAND", "GIT_SSH", "core.sshCommand"])
def test_the_users_own_ssh_is_used(clones, tmp_path, my_ssh, way):
    git(clones.here, "remote", "set-url", "origin", f"ssh://server{tmp_path}/origin")
    more = {way: my_ssh}
    if "." in way:
        git(clones.here, "config", way, my_ssh)
        more = {}
    newest = clones.upstream_gets(same="upstream's\n")
    result = clones.update(**more)
    assert result.returncode == 0 and "fast-forwarded" in result.stdout, result.stdout
    assert git(clones.here, "rev-parse", "HEAD") == newest


class WantsPassword(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", "Basic")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def asks(tmp_path) -> str:
    """A window that asks for a password, as in a terminal of VS Code, and is never answered."""
    asks = tmp_path / "asks"
    asks.write_text("#!/bin/sh\nexec sleep 300.5\n")
    asks.chmod(0o755)
    return str(asks)


@pytest.fixture
def wants_password() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), WantsPassword) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://me:secret@127.0.0.1:{server.server_port}/x"
        server.shutdown()


@pytest.mark.parametrize("way", ["GIT_ASKPASS", "SSH_ASKPASS", "core.askPass"])
def test_no_window_asks_for_a_password_where_nobody_is(clones, asks, wants_password, way):
    more = {way: asks}
    if "." in way:
        git(clones.here, "config", way, asks)
        more = {}
    git(clones.here, "remote", "set-url", "origin", wants_password)
    result = clones.update(**more)
    assert result.returncode == 0 and "warning: git fetch from http://127.0.0.1" in result.stdout
    assert "secret" not in result.stdout + result.stderr


def run_alone(folder: Path, *flags: str, **more: str) -> subprocess.CompletedProcess:
    """setup_and_train.sh, copied without its clone."""
    script = shutil.copy2(REPOSITORY / "setup_and_train.sh", folder)
    return subprocess.run(
        [script, f"--data_dir={folder}", "--cpu", "--only=repo", *flags],
        env=os.environ | more,
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def test_a_script_without_its_clone_does_the_same(clones, tmp_path, my_ssh, asks, wants_password):
    """What it clones here is no repository of ours, so that it ends there."""
    for url, text in (
        (wants_password, "cannot be cloned"),
        (f"ssh://server{tmp_path}/origin", "is another project"),
    ):
        flags = (f"--repo={url}", "--dry_run")
        result = run_alone(tmp_path, *flags, GIT_SSH_COMMAND=my_ssh, GIT_ASKPASS=asks)
        assert result.returncode == 2 and text in result.stderr, result.stderr


def test_a_clone_never_goes_where_the_user_has_something(clones, tmp_path):
    """Code that is there is used, with or without .git; git's environment is another clone's."""
    folder, code = tmp_path / "alone", tmp_path / "alone" / "ResNet50_ImageNet1K_Training"
    code.mkdir(parents=True)
    origin = tmp_path / "code"
    support_clone(origin)
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=all"]):
        git(origin, *words)
    head = git(clones.here, "rev-parse", "HEAD")
    elsewhere = {"GIT_DIR": str(clones.here / ".git"), "GIT_WORK_TREE": str(clones.here)}
    (code / "thesis").touch()
    partial = folder / f"{code.name}.partial"
    partial.mkdir()
    refused = run_alone(folder, f"--repo={origin}", **elsewhere)
    assert refused.returncode == 2 and f"mv {code} {code}.old" in refused.stderr
    assert os.listdir(code) == ["thesis"]
    code.rename(f"{code}.old")
    for how in ("cloned", "a clone", "without .git"):
        if how == "without .git":
            shutil.rmtree(code / ".git")
        result = run_alone(folder, f"--repo={origin}", **elsewhere)
        assert ("== cloning" in result.stdout) == (how == "cloned")
        assert result.returncode == 0 and "== 4/7 repo" in result.stdout, result.stderr
        assert ("not a git clone" in result.stdout) == (how == "without .git")
    kept = {"setup_and_train.sh", code.name, f"{code.name}.old", partial.name}
    assert {*os.listdir(folder)} == kept
    assert git(clones.here, "rev-parse", "HEAD") == head
    assert not git(clones.here, "status", "--porcelain")


def test_the_script_forgets_what_git_was_told_of_another_repository():
    words = (REPOSITORY / "setup_and_train.sh").read_text().replace("\\\n", "").split()
    assert {*ELSEWHERE} == {word for word in words if word in ELSEWHERE}


def test_a_network_that_swallows_everything_is_named(clones, monkeypatch):
    monkeypatch.setattr(clone, "FETCH_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"git://127.0.0.1:{server.getsockname()[1]}/x"
        git(clones.here, "remote", "set-url", "origin", url)
        start = time.monotonic()
        problem = clone.Clone(clones.here).fetch()
    assert problem == f"git fetch from {url} did not end in 1 s, and was stopped"
    assert time.monotonic() - start < 20 and not processes_mentioning(url)


def rename_the_branch(clones: Clones) -> None:
    git(clones.there, "branch", "--move", "trunk")
    git(clones.there, "push", "--quiet", "origin", "trunk")
    git(clones.here.parent / "origin", "symbolic-ref", "HEAD", "refs/heads/trunk")
    git(clones.there, "push", "--quiet", "origin", ":main")


NOT_FOLLOWING = {
    "detached": (
        lambda clones: git(clones.here, "checkout", "--quiet", "--detach"),
        "follows no upstream branch, and is not updated: git checkout main",
    ),
    "no upstream": (
        lambda clones: git(clones.here, "branch", "--unset-upstream"),
        "is not updated: git branch --set-upstream-to=origin/main",
    ),
    "no remote": (
        lambda clones: git(clones.here, "remote", "remove", "origin"),
        "is not updated: git remote add origin URL",
    ),
    "renamed": (rename_the_branch, "branch main is gone; was it renamed?"),
}


@pytest.mark.parametrize("case", NOT_FOLLOWING)
def test_a_clone_that_is_never_updated_says_so(clones, case):
    change, text = NOT_FOLLOWING[case]
    git(clones.here, "remote", "set-head", "origin", "main")
    change(clones)
    result = clones.update()
    assert result.returncode == 0 and text in result.stdout, result.stderr
    assert "fast-forwarded" not in result.stdout


def test_a_rewritten_upstream_is_named(clones):
    (clones.there / "same").write_text("upstream's\n")
    git(clones.there, "commit", "--quiet", "--all", "--amend", "--message", "first, again")
    git(clones.there, "push", "--quiet", "--force")
    head = git(clones.here, "rev-parse", "HEAD")
    for _ in range(2):
        result = clones.update()
        assert result.returncode == 0 and "upstream was rewritten" in result.stdout, result.stderr
        assert "commits of your own" not in result.stdout
    merged = clones.update("merge")
    assert merged.returncode == 2 and "thrown away" in merged.stderr
    assert git(clones.here, "rev-parse", "HEAD") == head
    assert clones.update("reset", "--yes").returncode == 0
    assert git(clones.here, "show", "HEAD:same") == "upstream's"
    assert clones.backup()


HALF_FINISHED = {
    "merge": (["merge", "topic"], "git merge --abort"),
    "rebase": (["rebase", "topic"], "git rebase --abort"),
    "cherry-pick": (["cherry-pick", "topic"], "git cherry-pick --abort"),
    "revert": (["revert", "--no-edit", "HEAD~1"], "git revert --abort"),
    "bisect": (["bisect", "start", "HEAD", "HEAD~1"], "git bisect reset"),
    "stash": (["stash", "apply"], "files with conflicts (same)"),
}


@pytest.mark.parametrize("what", HALF_FINISHED)
def test_what_is_half_finished_is_named_and_left_alone(clones, what):
    words, text = HALF_FINISHED[what]
    here = clones.here
    for branch, line in (("topic", "topic's\n"), ("main", "mine\n"), ("main", "mine again\n")):
        git(here, "checkout", "--quiet", *([] if branch == "main" else ["-b"]), branch)
        (here / "same").write_text(line)
        git(here, "commit", "--quiet", "--all", "--message", line)
        git(here, "checkout", "--quiet", "main")
    if what == "stash":
        (here / "same").write_text("mine, stashed\n")
        git(here, "stash")
        (here / "same").write_text("mine, once more\n")
        git(here, "commit", "--quiet", "--all", "--message", "more")
    subprocess.run(["git", "-C", here, *words], env=os.environ | WHO, capture_output=True)
    clones.upstream_gets(both="upstream's\n")
    before, head = clones.state(), git(here, "rev-parse", "HEAD")
    for way in ("", "merge", "reset", "backup"):
        result = clones.update(way, "--yes")
        assert result.returncode == 2 and text in result.stderr, result.stdout
    assert clones.state() == before and git(here, "rev-parse", "HEAD") == head
    assert not git(here, "for-each-ref", "refs/backup")
