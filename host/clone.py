"""A clone with git: what it follows, what is changed in it, and a backup of all of that.

Runs before there is an environment: standard library, Python 3.10.
"""

import os
import re
import subprocess
import tempfile
import time
from functools import cached_property
from pathlib import Path

from host import commands
from resnet50.system import git

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
            own = commands.run(
                ["git", "-C", str(self.folder), "config", "core.sshCommand"],
                env=dict.fromkeys(git.ELSEWHERE),
            ).stdout
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
        more["env"] = {**dict.fromkeys(git.ELSEWHERE), **self.quiet, **more.get("env", {})}
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
        """The note that a merge was begun: the backup, the commit from before, and upstream's."""
        return self.folder / self.git("rev-parse", "--git-path", "SETUP_MERGE")

    def same(self, one: str, other: str) -> bool:
        """Whether two commits have the same files and the same first parent."""
        shown = [self.git("show", "--no-patch", "--format=%T %P", name) for name in (one, other)]
        return shown[0].split()[:2] == shown[1].split()[:2]

    def changes(self) -> list[str]:
        """git status's lines for staged, unstaged and untracked files."""
        return self.git("status", "--porcelain", "--untracked-files=all").splitlines()

    def tree(self) -> str:
        """All files as they are, as a tree of git; touches neither index nor files."""
        # What git ignores, or has been told to forget, but is staged or committed, is one of them.
        staged = self.git("diff", "--cached", "--name-only", "-z", "HEAD").split("\0")
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
            self.git("read-tree", "HEAD", **index)
            self.git("add", "--all", **index)
            if names := list(filter(None, staged)):
                self.git("update-index", "--add", "--remove", "--", *names, **index)
            return self.git("write-tree", **index)

    def files(self, tree: str) -> set[str]:
        """Mode, content and name of every file of a commit or a tree."""
        return set(self.git("ls-tree", "-r", "-z", tree).split("\0"))

    def in_the_way(self, commit: str) -> list[str]:
        """Ignored files that an update to a commit would replace: no backup of ours has them."""
        more = ("diff", "--name-only", "--no-renames", "--diff-filter=A", "-z", "HEAD", commit)
        added = {Path(name) for name in self.git(*more).split("\0") if name}
        above = {folder for path in added for folder in path.parents[:-1]}
        there = [path for path in added if os.path.lexists(self.folder / path)]
        there += [path for path in above if (self.folder / path).is_file()]
        if not there:
            return []
        ignored = ("ls-files", "--others", "--ignored", "--exclude-standard", "--")
        return self.git("--literal-pathspecs", *ignored, *map(str, there)).splitlines()

    def back_up(self) -> str:
        """Commit everything to a ref of its own, touching neither index nor files; returns it.

        A merge, as git stash makes it: its tree is the files as they are, its parents are HEAD and
        a commit of what is staged.
        """
        head = self.git("rev-parse", "HEAD")
        staged = self.git(
            "commit-tree", self.git("write-tree"), "-p", head, "-m", "what was staged"
        )
        saved = self.git(
            "commit-tree", self.tree(), "-p", head, "-p", staged, "-m", "all local changes"
        )
        for ref in self.git("for-each-ref", "--format=%(refname)", "refs/backup").splitlines():
            if self.same(ref, saved) and self.same(f"{ref}^2", staged):
                print(f"all local changes are saved already, as {ref}")
                return ref
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        ref = f"refs/backup/{stamp}-{saved[:8]}"
        self.git("update-ref", ref, saved)
        print(f"all local changes are saved as {ref}; to get back to them: git checkout {ref}")
        return ref
