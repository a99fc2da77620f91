"""On a machine without the packages that .ci/run installs, tests skip by name and none fails.

The README's second command runs the suite on any machine: a missing package must not be a failure.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import REPOSITORY, environment
from support.needs import needs

pytestmark = needs("dpkg")


def programs_of_ci() -> set[str]:
    """Names of all programs in the packages that .ci/run installs."""
    script = (REPOSITORY / ".ci" / "run").read_text()
    packages = re.search(r"^needed=\((.+?)\)$", script, re.MULTILINE | re.DOTALL)[1].split()
    listed = subprocess.run(["dpkg", "--listfiles", *packages], capture_output=True, text=True)
    paths = [Path(line) for line in listed.stdout.splitlines()]
    return {path.name for path in paths if path.parent.name in ("bin", "sbin")}


def ids_of_tests_that_mention(programs: set[str]) -> list[str]:
    """Ids of the test functions with one of these names in a string, or in a helper's string.

    This file is left out, and so are the commands of the pages, which are read and not run.
    """
    found = []
    for path in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        if path.name in ("test_needs.py", "test_pages.py"):
            continue
        nodes = ast.parse(path.read_text()).body
        named = {name_of(node): node for node in nodes if name_of(node)}
        relevant = {name for name, node in named.items() if mentions(node, programs)}
        while more := {n for n, node in named.items() if names_in(node) & relevant} - relevant:
            relevant |= more
        tests = sorted(name for name in relevant if name.startswith("test_"))
        found += [f"{path.relative_to(REPOSITORY)}::{name}" for name in tests]
    return found


def name_of(node: ast.AST) -> str:
    """The name of a function, or of a constant."""
    if isinstance(node, ast.Assign):
        return node.targets[0].id if isinstance(node.targets[0], ast.Name) else ""
    return node.name if isinstance(node, ast.FunctionDef) else ""


def mentions(node: ast.AST, programs: set[str]) -> bool:
    """As a whole string, or up to the dot in an f-string such as f"mkfs.{kind}"."""
    constants = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
    families = {f"{name.partition('.')[0]}." for name in programs if "." in name}
    return any(isinstance(value, str) and value in programs | families for value in constants)


def names_in(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


@pytest.fixture(scope="module")
def bare_path(tmp_path_factory) -> str:
    """A PATH with all programs of this machine except those."""
    folder, programs = tmp_path_factory.mktemp("bin"), programs_of_ci()
    if not programs:
        pytest.skip("needs the packages of .ci/run")
    for place in os.environ["PATH"].split(":"):
        for path in sorted(Path(place).glob("*")) if place else ():
            link = folder / path.name
            if path.name not in programs and not link.is_symlink():
                link.symlink_to(path)
    return str(folder)


def run_tests(bare_path: str, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment(PATH=bare_path),
        capture_output=True,
        text=True,
        timeout=1700,
    )


def test_without_them_all_tests_are_found_and_skip_by_name(bare_path):
    """Only those that mention one of them are run; the others are in the long form below."""
    programs = programs_of_ci()
    chosen = [name.rpartition("::")[2] for name in ids_of_tests_that_mention(programs)]
    assert len(chosen) >= 8
    # Two of them start programs of their own making, and train for a minute.
    words = f"({' or '.join(chosen)}) and not setsid and not trains_nothing"
    result = run_tests(bare_path, "--numprocesses=0", "-k", words)
    assert result.returncode == 0, result.stdout[-5000:]
    reasons = set(re.findall(r"^SKIPPED .*?: needs (.+)$", result.stdout, re.MULTILINE))
    named = {name for reason in reasons for name in reason.split(", ")}
    assert {"cryptsetup", "sfdisk", "mkfs.xfs", "growpart", "tmux", "strace"} <= named
    assert named <= programs, named - programs
    assert int(re.search(r"(\d+) deselected", result.stdout)[1]) > 1500


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_without_them_no_test_of_the_host_fails(bare_path):
    result = run_tests(bare_path, "tests/host", "tests/house/test_setup.py", "tests/promises")
    assert result.returncode == 0, result.stdout[-5000:]
