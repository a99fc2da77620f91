"""Git's environment. Standard library, Python 3.10."""

import os

# What points git to another repository than that of the folder, whatever -C says: set in hooks, and
# by whoever keeps dotfiles in git. More of `git rev-parse --local-env-vars` is only configuration.
ELSEWHERE = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_PREFIX"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE"),
    *("GIT_SHALLOW_FILE", "GIT_GRAFT_FILE", "GIT_REPLACE_REF_BASE", "GIT_IMPLICIT_WORK_TREE"),
)


def environment() -> dict[str, str]:
    """Ours, in which git takes the repository of the folder."""
    return {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
