"""What every command's command line has in common. Standard library, Python 3.10."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from resnet50.config import habits


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
        self._words: list[str] = []

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        self._words = with_home(with_underscores(sys.argv[1:] if args is None else args))
        if empty := empty_option(self._words):
            self.error(f"{empty} is empty: is it an unset variable? Leave it out, or give a value")
        return super().parse_known_args(self._words, namespace)

    def error(self, message: str) -> NoReturn:
        """End with exit code 2; for other programs' options, say what they are called here."""
        # Whatever the error is: a missing option may have been given under another program's name.
        known = self._option_string_actions
        names = dict.fromkeys(word.partition("=")[0] for word in options_of(self._words))
        meant = {name: habits.suggestion(name, known) for name in names if name not in known}
        hints = [f"{name}: {text}" for name, text in meant.items() if text]
        super().error(f"{message}. {'; '.join(hints)}" if hints else message)


def with_underscores(argv: Sequence[str]) -> list[str]:
    """`--max-lr` and `--max_lr` are the same flag; values after `=` or a space are left alone."""

    def spelled(word: str) -> str:
        name, equals, value = word.partition("=")
        return name.replace("-", "_").replace("__", "--", 1) + equals + value

    return [spelled(word) if word.startswith("--") and len(word) > 2 else word for word in argv]


def options_of(words: Sequence[str]) -> list[str]:
    """The words that are options, up to a lone `--`; negative numbers are not."""
    words = words[: words.index("--")] if "--" in words else words
    return [word for word in words if word[:1] == "-" and not word[1:2].isdigit() and word != "-"]


def with_home(words: Sequence[str]) -> list[str]:
    """With `~` as the home folder: shells do not expand it in `--run_dir=~/runs`."""

    def expanded(word: str) -> str:
        name, equals, value = word.partition("=")
        if word[:2] == "--" and equals:
            return f"{name}={os.path.expanduser(value)}"  # noqa: PTH111 (Path raises without a HOME)
        return os.path.expanduser(word)  # noqa: PTH111

    return list(map(expanded, words))


def empty_option(words: Sequence[str]) -> str:
    """The option, or argument, that was given an empty text; empty if there is none.

    As a path it would be the current folder, which `--run_dir "$RUN"` never means.
    """
    words = words[: words.index("--")] if "--" in words else words
    for before, word in zip(["", *words], words, strict=False):
        if not word.strip():
            return before if before[:2] == "--" and "=" not in before else "an argument"
        name, equals, value = word.partition("=")
        if word[:2] == "--" and equals and not value.strip():
            return name
    return ""


def print_error(prog: str, error: object) -> int:
    """Say what the user must change; returns the exit code for it, 2."""
    # In one write: torchrun's ranks share stderr unbuffered, where print writes its newline apart.
    print(f"{prog}: error: {error}\n", end="", file=sys.stderr, flush=True)
    return 2
