"""The house: what is at the top, which room may import which, and what each part must not need.

The rooms are those of the README's tree; a new file must find its own.
"""

import ast
import re
import subprocess
import sys

import pytest
from support.commands import REPOSITORY
from support.imports import (
    closure,
    imported_at_once,
    imports_of,
    modules,
    packages_of,
    tree_of,
)

from resnet50.export import space

COMMANDS = (
    "train",
    "lr_finder",
    "prepare_data",
    "evaluate",
    "bench",
    "export",
    "app",
)
HOST_COMMANDS = ("check", "instance_store", "repository", "service", "smoke_test", "volume")
# Entries of the repository's top; those that begin with a dot are not counted.
TOP = {
    *(f"{name}.py" for name in (*COMMANDS, "model", "dataset_paths")),
    "setup_and_train.sh",
    "README.md",
    "ImageNet_Setup_Guide.md",
    "COMPARISON.md",
    "LICENSE",
    "requirements.txt",
    "requirements-dev.txt",
    "pyproject.toml",
    "resnet50",
    "host",
    "launch",
    "benchmarks",
    "docs",
    "findings",
    "notebooks",
    "images",
    "tests",
}
# What a room's files may import beside each other. Commands may import every room.
ROOMS = {
    "system": set(),
    "config": set(),
    "data": {"system", "dataset_paths"},
    "packing": {"data", "config", "system", "dataset_paths"},
    "training": {"data", "config", "system", "model", "dataset_paths"},
    "records": {"training.plan", "config", "system"},
    "run": {"records", "training", "data", "config", "system", "dataset_paths"},
    "inference": {"records", "training", "data", "system.figures", "system.outputs", "model"},
    "export": {
        *("inference", "records", "training", "data", "config", "model", "dataset_paths"),
        *("system.preflight", "system.outputs"),
    },
    "host": {"records.status", "config.command_line", "system"},
}
GROUND = ("model", "dataset_paths")  # at the top, and under everything
IMPORTED_AS = {
    "pillow": "PIL",
    "opencv-python-headless": "cv2",
    "torch-lr-finder": "torch_lr_finder",
}
NUM_MODULES = 136


def room_of(name: str) -> str:
    """ "data" for resnet50.data.loader, "host" for host.volume, the name itself at the top."""
    parts = name.split(".")
    return parts[1] if parts[0] == "resnet50" else parts[0]


def short(name: str) -> str:
    return name.removeprefix("resnet50.")


def test_the_top_is_a_frozen_list():
    assert len(TOP) <= 26
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    found = {name.partition("/")[0] for name in listed.stdout.splitlines()}
    assert {name for name in found if (REPOSITORY / name).exists() and name[0] != "."} == TOP


def test_all_modules_are_looked_at():
    """A check that walks files would stay green if the files moved away."""
    assert len(modules()) >= NUM_MODULES
    rooms = {room_of(name) for name in modules()}
    assert rooms == {*ROOMS, *GROUND, *COMMANDS}
    for room in set(ROOMS) - {"host"}:
        assert (REPOSITORY / "resnet50" / room / "__init__.py").read_text() == ""


@pytest.mark.parametrize("room", [*ROOMS, *GROUND])
def test_a_room_imports_only_what_stands_in_its_row(room):
    files = [name for name in modules() if room_of(name) == room]
    assert files
    for name in files:
        for other in imports_of(name):
            is_allowed = room_of(other) == room or any(
                short(other) == allowed or short(other).startswith(f"{allowed}.")
                for allowed in ROOMS.get(room, ())
            )
            assert is_allowed, f"{name} imports {other}"


def test_a_command_never_imports_another_one():
    for name in COMMANDS:
        assert not imports_of(name) & set(COMMANDS), name
    for name in modules():
        assert not imports_of(name) & set(COMMANDS) or name in COMMANDS, name


def test_no_two_files_import_each_other():
    """Nor in a longer circle: every file can be read before those that import it."""
    order, visiting = set(), []

    def visit(name: str) -> None:
        assert name not in visiting, " -> ".join([*visiting[visiting.index(name) :], name])
        if name in order:
            return
        visiting.append(name)
        for other in sorted(imports_of(name)):
            visit(other)
        visiting.pop()
        order.add(name)

    for name in modules():
        visit(name)
    assert len(order) == len(modules())


def test_the_host_needs_the_standard_library_and_python_3_10():
    """Before there is an environment: Ubuntu 22.04 has 3.10. smoke_test is for afterwards."""
    names = closure(*(name for name in modules() if name.startswith("host."))) - {"host.smoke_test"}
    assert {"host.volume", "resnet50.records.status", "resnet50.system.files"} <= names
    assert len(names) >= 14
    for name in names:
        ast.parse(modules()[name].read_text(), feature_version=(3, 10))
        assert packages_of(name) <= set(sys.stdlib_module_names), name


def test_a_space_needs_no_loader():
    """app.py runs on a laptop, and in a Space with the packages that it imports."""
    names = closure("app")
    files, packages = space.files_and_packages()
    paths = {str(modules()[name].relative_to(REPOSITORY)) for name in names}
    assert paths == {name for name in files if not name.endswith("__init__.py")}
    used = {package for name in names for package in packages_of(name)}
    assert used - set(sys.stdlib_module_names) == packages
    assert not packages & {"simplejpeg", "cv2", "tqdm", "matplotlib"}


def test_packing_begins_without_torch():
    """On a host whose GPU is rented by the hour, and in every process that packs."""
    names = closure("prepare_data", at_once=True)
    assert len(names) >= 20
    for name in names:
        first_names = {imported.partition(".")[0] for imported in imported_at_once(name)}
        assert "torch" not in first_names, name


def test_only_declared_packages_are_imported():
    requirements = (REPOSITORY / "requirements.txt").read_text().splitlines()
    packages = {line.partition("==")[0] for line in requirements if "==" in line}
    packages = (packages - set(IMPORTED_AS)) | set(IMPORTED_AS.values())
    for name in modules():
        assert packages_of(name) - set(sys.stdlib_module_names) <= packages, name


def test_nothing_happens_at_import():
    harmless = (
        ast.Import,
        ast.ImportFrom,
        ast.FunctionDef,
        ast.ClassDef,
        ast.Assign,
        ast.AnnAssign,
    )
    for name in modules():
        for node in tree_of(name).body:
            text = ast.unparse(node)
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_guarded = text.startswith(("if __name__ == '__main__'", "if TYPE_CHECKING:"))
            silences_matplotlib = text.startswith("logging.getLogger('matplotlib').setLevel(")
            looks_at_python = (name, text) == ("resnet50.system.preflight", "check()")
            is_harmless = isinstance(node, harmless) or is_docstring or is_guarded
            assert is_harmless or silences_matplotlib or looks_at_python, f"{name}: {text}"


def test_every_command_looks_at_its_python_first():
    for name in COMMANDS:
        first = next(node for node in tree_of(name).body if isinstance(node, ast.Import))
        assert ast.unparse(first) == "import resnet50.system.preflight", name
    assert not imports_of("resnet50.system.preflight")
    assert packages_of("resnet50.system.preflight") == {"os", "sys"}


def test_commands_have_a_main_that_takes_arguments():
    for name in [*COMMANDS, "dataset_paths", *(f"host.{name}" for name in HOST_COMMANDS)]:
        functions = [node for node in tree_of(name).body if isinstance(node, ast.FunctionDef)]
        (main,) = (node for node in functions if node.name == "main")
        assert [argument.arg for argument in main.args.args] == ["argv"], name
        assert ast.unparse(main.returns) == "int", name


def strings_of(name: str) -> set[str]:
    constants = (node for node in ast.walk(tree_of(name)) if isinstance(node, ast.Constant))
    return {node.value for node in constants if isinstance(node.value, str)}


def test_only_distributed_reads_the_launchers_variables():
    for name in set(modules()) - {"resnet50.training.distributed"}:
        assert not strings_of(name) & {"RANK", "LOCAL_RANK", "WORLD_SIZE"}, name


def test_only_status_knows_its_file_and_the_states():
    """Others refer to them by name, so that a state cannot be misspelled."""
    states = {"running", "interrupted", "diverged", "crashed", "config error", "status.json"}
    for name in set(modules()) - {"resnet50.records.status"}:
        assert not strings_of(name) & states, name


def test_functions_are_short_and_flat():
    """The limits here: functions up to 60 lines, nesting up to 4."""
    nests = (ast.For, ast.While, ast.If, ast.With, ast.Try)

    def depth(node: ast.AST, outer: int = 0) -> int:
        inner = [depth(c, outer + isinstance(c, nests)) for c in ast.iter_child_nodes(node)]
        return max([outer, *inner])

    paths = [*modules().values(), *REPOSITORY.glob("benchmarks/*.py")]
    assert len(paths) > NUM_MODULES + 8
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name} is too long"
                assert depth(node) <= 4, f"{path.name}: {node.name} nests too deep"


# Mentioned, and of other projects or made by tests.
OTHERS = {
    "callbacks/model_checkpoint.py",
    "datasets/imagenet.py",
    "datasets/imagenette.py",
    "imagenet/main.py",
    "numpy.py",
    "references/classification/presets.py",
    "references/classification/train.py",
    "resnet.py",
    "train_imagenet.py",
    "without/tensorboard.py",
}
OURS = (
    "resnet50/",
    "host/",
    "benchmarks/",
    "launch/",
    *(f"tests/{room}/" for room in ROOMS),
    "tests/commands/",
    "tests/promises/",
    "tests/house/",
)


def test_every_file_and_test_that_is_mentioned_exists():
    """In docstrings, comments and pages: NAME.py, ROOM/NAME.py, FILE.py::test_name."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]
    known = {f"/{name}" for name in paths}
    texts = [name for name in paths if name.endswith((".py", ".md", ".sh", ".yaml", ".sbatch"))]
    assert len(texts) > 180
    mention = re.compile(r"(?<![\w/.{$*-])((?:\w+/)*[a-z]\w*\.py)\b(?:::(\w+))?")
    for name in texts:
        for file, test in set(mention.findall((REPOSITORY / name).read_text())):
            if name == "COMPARISON.md" and not file.startswith(OURS):
                continue  # of the programs that it compares with
            found = [path for path in known if path.endswith(f"/{file}")]
            assert found or file in OTHERS, f"{name} mentions {file}"
            if test:
                assert any(f"def {test}(" in (REPOSITORY / path[1:]).read_text() for path in found)
