"""What every command's command line has in common. Standard library, Python 3.10."""

import argparse
import sys
from collections.abc import Sequence


class Parser(argparse.ArgumentParser):
    """Flags are spelled with underscores and take hyphens too; none may be shortened.

    doc: the module's docstring, which --help shows as it is.
    """

    def __init__(self, prog: str, doc: str, **more: object) -> None:
        super().__init__(
            prog=prog,
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **more,
        )

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args(with_underscores(words), namespace)


def with_underscores(argv: Sequence[str]) -> list[str]:
    """`--max-lr` and `--max_lr` are the same flag; values after `=` or a space are left alone."""

    def spelled(word: str) -> str:
        name, equals, value = word.partition("=")
        return name.replace("-", "_").replace("__", "--", 1) + equals + value

    return [spelled(word) if word.startswith("--") and len(word) > 2 else word for word in argv]


def print_error(prog: str, error: object) -> int:
    """Say what the user must change; returns the exit code for it, 2."""
    print(f"{prog}: error: {error}", file=sys.stderr, flush=True)
    return 2
