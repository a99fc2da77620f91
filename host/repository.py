"""Bring a clone up to date without losing a local change, and never under a run.

    python3 -m host.repository --on_local_changes keep
    python3 -m host.repository --on_local_changes reset --yes
    python3 -m host.repository --on_local_changes merge --allow_code_change

A clone without local changes is fast-forwarded to its upstream. One with local changes:

    fail     ends, naming them
    keep     stays as it is; training uses what is on the disk
    backup   saves them all under refs/backup/, and fast-forwards if upstream changed none of them
    merge    saves them all, and merges them with upstream; after a conflict all is as before
    reset    saves them all, and resets to upstream; needs --yes

All means staged, unstaged, and untracked files, and commits that upstream does not have. While a
run has checkpoints the code does not change. Standard library, Python 3.10. Exit codes: 0 done, 2
change something.
"""

import argparse
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from host import commands
from resnet50.config.command_line import Parser, print_error
from resnet50.records import status

CLONE = Path(__file__).resolve().parents[1]
WAYS = ("fail", "keep", "backup", "merge", "reset")
ANSWER_S = 60.0
SSH = "ssh -o BatchMode=yes -o ConnectTimeout=30"
SLOW_S, FETCH_S = "30", 120.0  # below 1 kB/s for this long: no network; and the whole fetch
# What git leaves of something that is half finished, and how to end that.
HALF_FINISHED = {
    "MERGE_HEAD": ("merge", "git merge --abort"),
    "rebase-merge": ("rebase", "git rebase --abort"),
    "rebase-apply": ("rebase", "git rebase --abort, or git am --abort"),
    "CHERRY_PICK_HEAD": ("cherry-pick", "git cherry-pick --abort"),
    "REVERT_HEAD": ("revert", "git revert --abort"),
    "BISECT_LOG": ("bisect", "git bisect reset"),
}
THROWN_AWAY = "commits that upstream has thrown away"
IDENTITY = ("-c", "user.name=setup_and_train.sh", "-c", "user.email=setup_and_train@localhost")


class Clone:
    """A git work tree and what is changed in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def quiet(self) -> dict[str, str]:
        """What keeps git from asking for an answer, or waiting for a network, for ever."""
        quiet = {
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_MERGE_AUTOEDIT": "no",
            "GIT_HTTP_LOW_SPEED_TIME": SLOW_S,
            "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
        }
        # A command or program of the user's, as for a deploy key, is kept, and may not know -o.
        own = os.environ.get("GIT_SSH_COMMAND") or os.environ.get("GIT_SSH")
        if not own:
            own = commands.run(["git", "-C", str(self.folder), "config", "core.sshCommand"]).stdout
        if not own:
            quiet["GIT_SSH_COMMAND"] = SSH
        if not os.isatty(0):  # nobody would answer a window, such as that of VS Code
            quiet |= {"GIT_ASKPASS": "", "SSH_ASKPASS": "", "SSH_ASKPASS_REQUIRE": "never"}
            quiet["GCM_INTERACTIVE"] = "never"
        return quiet

    def call(
        self, *words: str, limit_s: float = commands.CHANGE_S, **more: object
    ) -> subprocess.CompletedProcess:
        """Run git, whatever it ends with. Raises ValueError if there is none, or it hangs."""
        more["env"] = {**self.quiet, **more.get("env", {})}
        return commands.run(["git", "-C", str(self.folder), *IDENTITY, *words], limit_s, **more)

    def git(self, *words: str, **environment: str) -> str:
        """What a git command prints. Raises ValueError with its message if it fails."""
        done = self.call(*words, env=environment)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise ValueError(f"git {' '.join(words)} failed: {said}")
        return done.stdout.rstrip("\n")

    def holds(self, *words: str) -> bool:
        """Whether a git command that answers by its exit code says yes."""
        return self.call(*words).returncode == 0

    def setting(self, name: str) -> str:
        """A value of git's configuration; empty if it is not set."""
        return self.call("config", name).stdout.strip()

    def fetch(self) -> str:
        """Get what this branch follows, if it follows one; returns why that failed, or nothing."""
        branch = self.branch()
        remote, followed = (self.setting(f"branch.{branch}.{key}") for key in ("remote", "merge"))
        if not followed:
            return ""
        address = self.setting(f"remote.{remote}.url") or remote
        what = f"git fetch from {re.sub('//[^/@]*@', '//', address)}"  # without a password
        words = ("fetch", "--quiet", remote, followed)
        try:
            done = self.call(*words, limit_s=FETCH_S, what=what, own_session=True)
        except ValueError as error:
            return str(error)
        if "couldn't find remote ref" in done.stderr:
            name = followed.removeprefix("refs/heads/")
            return (
                f"{what}: its branch {name} is gone; was it renamed? To follow another one: git "
                f"fetch {remote} && git branch --set-upstream-to={remote}/NAME"
            )
        return f"{what} failed: {done.stderr.strip()}" if done.returncode else ""

    def branch(self) -> str:
        """The branch that is checked out; empty if none is, but a commit."""
        return self.call("symbolic-ref", "--quiet", "--short", "HEAD").stdout.strip()

    def how_to_follow(self) -> str:
        """The command after which this clone has an upstream branch."""
        default = self.call("rev-parse", "--abbrev-ref", "origin/HEAD")
        name = default.stdout.strip() if default.returncode == 0 else "origin/BRANCH"
        if not self.branch():
            return f"git checkout {name.removeprefix('origin/')}"
        if not self.git("remote"):
            return f"git remote add origin URL && git fetch && git branch --set-upstream-to={name}"
        return f"git branch --set-upstream-to={name}"

    def upstream(self) -> str:
        """Commit of the branch that this one follows; empty if it follows none."""
        return self.call("rev-parse", "--verify", "--quiet", "@{upstream}").stdout.strip()

    def has(self, commit: str, other: str) -> bool:
        """Whether a commit has the other one in its history, or is it."""
        return self.holds("merge-base", "--is-ancestor", other, commit)

    def was_rewritten(self) -> bool:
        """Whether upstream had a commit of ours, and has thrown it away since."""
        followed = self.git("rev-parse", "--symbolic-full-name", "@{upstream}")
        fork = self.call("merge-base", "--fork-point", followed, "HEAD").stdout.strip()
        return bool(fork) and not self.has("@{upstream}", fork)

    def check_is_whole(self) -> None:
        """Raise ValueError if something is half finished: its files are no code to train with."""
        for name, (what, way_out) in HALF_FINISHED.items():
            if (self.folder / self.git("rev-parse", "--git-path", name)).exists():
                raise ValueError(
                    f"a git {what} is half finished in {self.folder}: finish it, or go back "
                    f"({way_out}), and come back"
                )
        if unmerged := self.git("diff", "--name-only", "--diff-filter=U").splitlines():
            raise ValueError(
                f"{self.folder} has files with conflicts ({', '.join(unmerged[:8])}): resolve "
                "them, git add them, and come back"
            )

    def merging(self) -> Path:
        """The note that a merge was begun: the backup, and the commit from before."""
        return self.folder / self.git("rev-parse", "--git-path", "SETUP_MERGE")

    def same(self, one: str, other: str) -> bool:
        """Whether two commits have the same files and the same first parent."""
        shown = [self.git("show", "--no-patch", "--format=%T %P", name) for name in (one, other)]
        return shown[0].split()[:2] == shown[1].split()[:2]

    def changes(self) -> list[str]:
        """git status's lines for staged, unstaged and untracked files."""
        return self.git("status", "--porcelain", "--untracked-files=all").splitlines()

    def back_up(self) -> str:
        """Commit everything to a ref of its own, touching neither index nor files; returns it.

        A merge, as git stash makes it: its tree is the files as they are, its parents are HEAD and
        a commit of what is staged.
        """
        head = self.git("rev-parse", "HEAD")
        staged = self.git(
            "commit-tree", self.git("write-tree"), "-p", head, "-m", "what was staged"
        )
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
            self.git("read-tree", "HEAD", **index)
            self.git("add", "--all", **index)
            tree = self.git("write-tree", **index)
        saved = self.git("commit-tree", tree, "-p", head, "-p", staged, "-m", "all local changes")
        for ref in self.git("for-each-ref", "--format=%(refname)", "refs/backup").splitlines():
            if self.same(ref, saved) and self.same(f"{ref}^2", staged):
                print(f"all local changes are saved already, as {ref}")
                return ref
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        ref = f"refs/backup/{stamp}-{saved[:8]}"
        self.git("update-ref", ref, saved)
        print(f"all local changes are saved as {ref}; to get back to them: git checkout {ref}")
        return ref


def update(clone: Clone, args: argparse.Namespace) -> None:
    """Update as far as --on_local_changes allows. Raises ValueError if it does not."""
    if clone.merging().exists():
        mend(clone)
    clone.check_is_whole()
    changes, head = clone.changes(), clone.git("rev-parse", "HEAD")
    problem, upstream = clone.fetch(), clone.upstream()
    if problem:
        print(f"warning: {problem}; continuing with the code that is here")
    own = own_commits(clone, head, upstream)
    behind = bool(upstream) and not clone.has(head, upstream)
    print(f"code: commit {head[:12]}" + (", upstream has newer" if behind else ""))
    if not upstream:
        print(f"it follows no upstream branch, and is not updated: {clone.how_to_follow()}")
    if not changes and not own and not behind:
        return
    if not args.allow_code_change and (run := run_with_checkpoints(args.runs)):
        print(f"{run} has checkpoints of this code: not updating it without --allow_code_change")
        return
    if not changes and not own:
        clone.git("merge", "--ff-only", "--quiet", upstream)
        print(f"fast-forwarded to {upstream[:12]}")
        return
    if not behind and args.on_local_changes not in ("fail", "reset"):
        return
    if own == THROWN_AWAY:
        print("upstream was rewritten; to take its code: --on_local_changes reset --yes")
    way = args.on_local_changes or ask(changes, own)
    if way == "fail":
        raise ValueError(f"local changes: {listed(changes, own)}; see --on_local_changes")
    if way == "keep":
        print(f"these stay and are used in training: {listed(changes, own)}")
    elif way == "merge" and own == THROWN_AWAY:
        raise ValueError(
            "--on_local_changes merge would bring back the commits that upstream has thrown away: "
            "choose another"
        )
    elif way == "reset" and not args.yes:
        raise ValueError("--on_local_changes reset removes local changes: add --yes")
    else:
        {"backup": back_up, "merge": merge, "reset": reset}[way](clone, upstream, behind)


def own_commits(clone: Clone, head: str, upstream: str) -> str:
    """What is to be said of the commits here that upstream does not have; empty without any."""
    if not upstream or clone.has(upstream, head):
        return ""
    return THROWN_AWAY if clone.was_rewritten() else "commits of your own"


def listed(changes: Sequence[str], own: str) -> str:
    """The first eight names, for a message."""
    names = [line[3:] for line in changes] + ([own] if own else [])
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def ask(changes: Sequence[str], own: str) -> str:
    """What the user chooses; keep if there is no terminal, or no answer in a minute."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "keep"
    print(f"local changes: {listed(changes, own)}")
    print(
        f"what to do with them? {', '.join(WAYS)} [keep, in {ANSWER_S:.0f} s] ", end="", flush=True
    )
    ready, _, _ = select.select([sys.stdin], [], [], ANSWER_S)
    answer = sys.stdin.readline().strip() if ready else ""
    if answer and answer not in WAYS:
        raise ValueError(f"{answer}: not one of {', '.join(WAYS)}")
    return answer or "keep"


def back_up(clone: Clone, upstream: str, behind: bool) -> None:
    """Save; then fast-forward, if git can do that without touching a changed file."""
    clone.back_up()
    if not behind:
        return
    try:
        clone.git("merge", "--ff-only", "--quiet", upstream)
        print(f"fast-forwarded to {upstream[:12]}")
    except ValueError as error:
        print(f"the code stays as it was: {error}")


def merge(clone: Clone, upstream: str, behind: bool) -> None:
    """Save, and merge the changes with upstream; a conflict leaves everything as it was."""
    ref, head = clone.back_up(), clone.git("rev-parse", "HEAD")
    if not behind:
        return
    changed = bool(clone.changes())
    clone.merging().write_text(f"{ref} {head}\n")  # a later start that finds it goes back: see mend
    if changed:
        clone.git("stash", "push", "--include-untracked", "--quiet")
    try:
        clone.git("merge", "--quiet", upstream)
        if changed:
            clone.git("stash", "apply", "--index", "--quiet")
    except ValueError as error:
        mend(clone)
        if changed:
            clone.git("stash", "drop", "--quiet")
        raise ValueError(
            f"local changes cannot be merged with {upstream[:12]} ({error}): all is as before. "
            "Merge by hand, or choose another --on_local_changes"
        ) from error
    clone.merging().unlink()
    if changed:
        clone.git("stash", "drop", "--quiet")
    print(f"local changes are merged with {upstream[:12]}")


def mend(clone: Clone) -> None:
    """Restore commit, files and index to before a merge that failed or was killed."""
    ref, head = clone.merging().read_text().split()
    clone.git("reset", "--hard", "--quiet", head)
    clone.git("read-tree", "--reset", "-u", ref)
    clone.git("read-tree", "--reset", f"{ref}^2")
    clone.merging().unlink()
    print(f"an unfinished merge was undone, back to {ref}")


def reset(clone: Clone, upstream: str, behind: bool) -> None:
    """Save, and reset to upstream; untracked files stay unless upstream has one of that name."""
    if not upstream:
        raise ValueError("--on_local_changes reset: this branch follows no upstream branch")
    clone.back_up()
    clone.git("reset", "--hard", "--quiet", upstream)
    print(f"the code is upstream's {upstream[:12]}")


def run_with_checkpoints(runs: Path) -> Path | None:
    """A run that can still be resumed, and so needs the code that started it."""
    for path in sorted(runs.glob(f"*/{status.FILE}")):
        run, state = path.parent, status.read_status(path.parent).get("state")
        if state not in status.ENDED and any(run.glob("checkpoints/step_*.pt")):
            return run
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Update; 0 if the code may be trained with, 2 if something must be changed."""
    parser = Parser("host/repository.py", __doc__)
    add = parser.add_argument
    add("--folder", type=Path, default=CLONE, metavar="DIR", help="[this clone]")
    add("--runs", type=Path, default=Path("runs"), metavar="DIR", help="run folders [runs]")
    add("--on_local_changes", choices=WAYS, help="[asks on a terminal, else keep]")
    add("--yes", action="store_true", help="with reset: remove local changes from the files")
    add("--allow_code_change", action="store_true", help="even under a run with checkpoints")
    add("--dry_run", action="store_true", help="name the local changes, change nothing")
    args = parser.parse_args(argv)
    clone = Clone(args.folder)
    if not (args.folder / ".git").exists():
        print(f"{args.folder} is not a git clone: its code is used as it is")
        return 0
    try:
        if args.dry_run:
            clone.check_is_whole()
            print(f"local changes: {listed(clone.changes(), '') or 'none'}")
        else:
            update(clone, args)
    except (ValueError, OSError) as error:
        return print_error("host/repository.py", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
