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
import select
import sys
from collections.abc import Sequence
from pathlib import Path

from host.clone import Clone
from resnet50.config.command_line import Parser, print_error
from resnet50.records import status

CLONE = Path(__file__).resolve().parents[1]
WAYS = ("fail", "keep", "backup", "merge", "reset")
ANSWER_S = 60.0
THROWN_AWAY = "commits that upstream has thrown away"


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
        check_ignored(clone, upstream)
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
        if behind or way == "reset":
            check_ignored(clone, upstream)
        {"backup": back_up, "merge": merge, "reset": reset}[way](clone, upstream, behind)


def check_ignored(clone: Clone, upstream: str) -> None:
    """Raise ValueError if upstream has files where the user has some that git ignores."""
    if upstream and (names := clone.in_the_way(upstream)):
        raise ValueError(
            f"upstream has files where {clone.folder} has others, which git ignores: "
            f"{', '.join(names[:8])}. Rename yours, and come back"
        )


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
    clone.merging().write_text(
        f"{ref} {head} {upstream}\n"
    )  # a later start that finds it: see mend
    if changed:
        set_aside(clone, ref, head)
    try:
        clone.git("merge", "--quiet", upstream)
        if changed:
            put_back(clone, ref, head)
    except ValueError as error:
        undo(clone, ref, head)
        raise ValueError(
            f"local changes cannot be merged with {upstream[:12]} ({error}): all is as before. "
            "Merge by hand, or choose another --on_local_changes"
        ) from error
    clone.merging().unlink()
    print(f"local changes are merged with {upstream[:12]}")


def set_aside(clone: Clone, ref: str, head: str) -> None:
    """Make files and index those of HEAD. Raises ValueError, with all as before, if it cannot."""
    try:
        clone.git("read-tree", ref)
        clone.call("update-index", "-q", "--refresh")
        clone.git("read-tree", "-m", "-u", ref, head)  # refuses if a file is not as in the backup
    except ValueError:
        clone.merging().unlink()
        clone.git("read-tree", f"{ref}^2")
        raise


def put_back(clone: Clone, ref: str, head: str) -> None:
    """Apply a backup, which is what git stash makes. Raises ValueError after a conflict."""
    clone.git("stash", "apply", "--index", "--quiet", ref)
    # Where nothing was staged, or upstream has all that was, it has staged the untracked files.
    if any(clone.holds("diff", "--quiet", f"{ref}^2", commit) for commit in (head, "HEAD")):
        clone.git("reset", "--quiet")


def undo(clone: Clone, ref: str, head: str) -> None:
    """Restore commit, files and index to before a merge."""
    clone.git("reset", "--hard", "--quiet", head)
    clone.git("read-tree", "--reset", "-u", ref)
    clone.git("read-tree", "--reset", f"{ref}^2")
    clone.merging().unlink()


def mend(clone: Clone) -> None:
    """Undo a merge that was killed. Raises ValueError if there is anything that it did not make."""
    note = clone.merging()
    try:
        ref, head, upstream = note.read_text().split()
        clone.git("rev-parse", *(f"{commit}^{{tree}}" for commit in (f"{ref}^2", head, upstream)))
    except ValueError as error:
        raise ValueError(
            f"{note} is there because a merge was interrupted, and says nothing that can be used. "
            f"If files are not as they were, git for-each-ref refs/backup names the backups; then "
            f"rm {note}, and come back"
        ) from error
    if what := made_since(clone, ref, head, upstream):
        raise ValueError(
            f"a merge was interrupted in {clone.folder}, and this may be newer: {what}. To go on "
            f"with what is there: rm {note}. Or, without all that came after the merge began: "
            f"git reset --hard {head[:12]} && git stash apply {ref} && rm {note}"
        )
    if clone.changes():
        clone.back_up()
    undo(clone, ref, head)
    print(f"an unfinished merge was undone, back to {ref}")


def made_since(clone: Clone, ref: str, head: str, upstream: str) -> str:
    """The commit or files that an interrupted merge did not make; empty if there are none."""
    now, *parents = clone.git("show", "--no-patch", "--format=%H %P", "HEAD").split()
    if now not in (head, upstream) and parents != [head, upstream]:
        return f"commit {now[:12]}"
    known = set().union(*map(clone.files, (ref, head, upstream, now)))
    return ", ".join(sorted(line.split("\t")[1] for line in clone.files(clone.tree()) - known)[:8])


def reset(clone: Clone, upstream: str, behind: bool) -> None:
    """Save, and reset to upstream; untracked files stay unless upstream has one of that name."""
    if not upstream:
        raise ValueError("--on_local_changes reset: this branch follows no upstream branch")
    clone.back_up()
    clone.git("reset", "--hard", "--quiet", upstream)
    print(f"the code is upstream's {upstream[:12]}")


def run_with_checkpoints(folders: Sequence[Path]) -> Path | None:
    """A run that can still be resumed, and so needs the code that started it."""
    for path in sorted(path for runs in folders for path in runs.glob(f"*/{status.FILE}")):
        run, state = path.parent, status.read_status(path.parent).get("state")
        if state not in status.ENDED and any(run.glob("checkpoints/step_*.pt")):
            return run
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Update; 0 if the code may be trained with, 2 if something must be changed."""
    parser = Parser("host/repository.py", __doc__)
    add = parser.add_argument
    add("--folder", type=Path, default=CLONE, metavar="DIR", help="[this clone]")
    runs = [Path("runs")]
    add("--runs", type=Path, nargs="+", default=runs, metavar="DIR", help="run folders [runs]")
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
