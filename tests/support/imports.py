"""What the files of this repository import: of each other, and of packages."""

import ast
import functools
from pathlib import Path

from support.commands import REPOSITORY


@functools.cache
def modules() -> dict[str, Path]:
    """The files of the product, by dotted name: those at the top, in resnet50/ and in host/."""
    paths = [
        path
        for pattern in ("*.py", "resnet50/**/*.py", "host/*.py")
        for path in REPOSITORY.glob(pattern)
        if path.name != "__init__.py"
    ]
    return {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in sorted(paths)
    }


@functools.cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text())


@functools.cache
def imported_names(name: str) -> frozenset[str]:
    """Dotted names in the imports of a module, inside functions too, for type checkers not."""
    return frozenset(_names(tree_of(name)))


@functools.cache
def imported_at_once(name: str) -> frozenset[str]:
    """Those that the module cannot do without: not the ones inside of functions."""
    found = set()
    for node in tree_of(name).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= _names(node)
    return frozenset(found)


def _names(tree: ast.AST) -> set[str]:
    found, nodes = set(), [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        nodes += ast.iter_child_nodes(node)
    return found


def imports_of(name: str) -> set[str]:
    """The modules of this repository that a module imports."""
    return imported_names(name) & modules().keys()


def packages_of(name: str) -> set[str]:
    """Everything else that it imports, by its first name."""
    ours = {module.partition(".")[0] for module in modules()}
    return {imported.partition(".")[0] for imported in imported_names(name)} - ours


def closure(*names: str, at_once: bool = False) -> set[str]:
    """These modules and all that they import, directly or through others.

    at_once: without what is imported inside of functions.
    """
    found, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        imported = imported_at_once(name) if at_once else imported_names(name)
        waiting |= (imported & modules().keys()) - found
    return found
