"""host/constraints.txt: what is installed next year is what was tested."""

import importlib.metadata
import re
import sys

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.commands import REPOSITORY

from resnet50.system.bucket_store import PACKAGE

# A wheel of torch names the exact versions of these by itself; each build has others.
TORCHS_OWN = ("nvidia-", "cuda-", "triton")


def requirements_of(name: str) -> list[Requirement]:
    lines = (REPOSITORY / name).read_text().splitlines()
    texts = (line.partition(" #")[0].strip() for line in lines)
    return [Requirement(text) for text in texts if text and text[0] not in "#-"]


def pins(python: str) -> dict[str, str]:
    """Versions by name on a version of Python, on Linux."""
    place = default_environment() | {"python_version": python, "python_full_version": f"{python}.1"}
    found = {}
    for pin in requirements_of("host/constraints.txt"):
        if pin.marker is None or pin.marker.evaluate(place):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} has two versions on Python {python}"
            found[name] = re.fullmatch(r"==([^*]+)", str(pin.specifier))[1]
    return found


def needed_packages() -> set[str]:
    """Names of all packages that the requirements lead to, here."""
    todo = [*requirements_of("requirements.txt"), *requirements_of("requirements-dev.txt")]
    seen = set()
    while todo:
        needed = todo.pop()
        for extra in ("", *needed.extras):
            key = (canonicalize_name(needed.name), extra)
            if key in seen:
                continue
            seen.add(key)
            for text in importlib.metadata.requires(needed.name) or []:
                other = Requirement(text)
                if other.marker is None or other.marker.evaluate({"extra": extra}):
                    todo.append(other)
    return {name for name, _ in seen}


def test_every_package_is_pinned_to_the_version_that_is_tested():
    version, needed = ".".join(map(str, sys.version_info[:2])), needed_packages()
    assert len(needed) > 100
    pinned = pins(version)
    for name in sorted(name for name in needed if not name.startswith(TORCHS_OWN)):
        assert pinned.get(name) == importlib.metadata.version(name), name


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_the_pins_agree_with_the_requirements_on_every_python(python):
    pinned = pins(python)
    for name in ("requirements.txt", "requirements-dev.txt"):
        for needed in requirements_of(name):
            assert f"=={pinned[canonicalize_name(needed.name)]}" == str(needed.specifier)
    assert not [name for name in pinned if name.startswith(TORCHS_OWN)]


def test_the_client_for_buckets_has_one_version_wherever_it_is_named():
    name, _, version = PACKAGE.partition("==")
    assert pins("3.12")[name] == version
    (needed,) = (one for one in requirements_of("requirements-dev.txt") if one.name == name)
    assert str(needed.specifier) == f"=={version}"
    for path in (REPOSITORY / "docs").glob("*.md"):
        assert set(re.findall(rf"{name}==([\w.]+)", path.read_text())) <= {version}, path
