"""Imports go down: commands, library, leaves; and nothing happens at import."""

import ast
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

COMMANDS = {
    "train", "evaluate", "prepare_data", "bench", "lr_finder", "app", "export",
    # What setup_and_train.sh is made of.
    "host_check", "volume", "smoke_test", "repository", "instance_cache", "service",
}  # fmt: skip
# Run by the system's Python before there is an environment: Ubuntu 22.04 has 3.10.
BEFORE_THE_ENVIRONMENT = (
    "host_check", "volume", "repository", "instance_cache", "service",
    "disks", "fstab", "host_changes", "run_state", "systemd_unit", "background",
)  # fmt: skip
# Put the library together for commands that train: the trainer, what measures it, the whole run.
ASSEMBLY = {
    "trainer", "host_speed", "range_test", "batch_fit", "assembly", "agreement", "resuming",
    "launch",
}  # fmt: skip
LIBRARY = {
    "data", "engine", "checkpoint", "run_log", "packing", "pack_report", "fashion_mnist",
    "pretrained", "export_formats", "export_check", "pruning", "model_card", "hub",
    "checkpoint_writer",
}  # fmt: skip
LEAVES = {
    "config", "recipes", "dataset_paths", "transforms", "model", "schedule", "distributed",
    "interruption", "supervisor", "run_folder", "curves", "tables", "sampling", "feeding", "jpeg",
    "packed_images", "pack_writer", "archives", "layouts", "known_archives", "rgb", "locking",
    "slots", "settings", "combinations", "command_line", "augment", "losses", "optimization",
    "learning_rate", "lr_curve", "recipe_table", "recipe", "small_recipes",
    "disks", "fstab", "host_changes", "run_state", "systemd_unit", "background",
    "predictions", "mistakes", "grad_cam", "stored_config", "tensorboard_log", "space_folder",
    "uploads", "spot_watch", "heartbeat",
}  # fmt: skip
MAY_IMPORT = {
    **dict.fromkeys(COMMANDS, ASSEMBLY | LIBRARY | LEAVES),
    **dict.fromkeys(ASSEMBLY, {"trainer"} | LIBRARY | LEAVES),
    "trainer": LIBRARY | LEAVES,
    "assembly": (ASSEMBLY - {"launch"}) | LIBRARY | LEAVES,
    "launch": {"assembly"} | LIBRARY | LEAVES,
    **dict.fromkeys(LIBRARY, LEAVES),
    **{name: set() for name in LEAVES},
    # The settings, and what is made of them.
    "combinations": {"settings", "config"},  # config for its type only
    "config": {"settings", "combinations"},
    "stored_config": {"settings", "config"},
    "command_line": {"settings", "config"},
    "small_recipes": {"recipe"},
    "recipes": {"recipe", "small_recipes"},
    "recipe_table": {"recipes"},
    "optimization": {"config", "settings"},
    # What a parent and its children must agree on.
    "supervisor": {"interruption"},
    "feeding": {"interruption", "sampling", "slots"},
    "slots": {"sampling"},
    # A pack is tiles of JPEG; whatever they are not, Pillow decodes as everywhere.
    "jpeg": {"rgb"},
    "transforms": {"rgb"},
    "augment": {"transforms"},
    "packed_images": {"jpeg"},
    "pack_writer": {"packed_images"},
    "pack_report": {"packing"} | LEAVES,
    "fstab": {"host_changes"},
    "background": {"host_changes", "systemd_unit"},
    # A trained model, and what it says of pictures.
    "pretrained": {"checkpoint", "transforms", "model"},
    "predictions": {"distributed", "sampling"},
    "mistakes": {"tables"},
    "pruning": {"pretrained", "model"},
    "export_formats": {"pretrained", "model", "transforms"},
    "export_check": {"pretrained", "data"} | LEAVES,
    "checkpoint_writer": {"checkpoint"},
    "model_card": {"pretrained", "export_check"} | LEAVES,
    "hub": {"pretrained", "export_formats", "model_card", "space_folder", "run_folder"},
    "app": {
        "pretrained",
        "checkpoint",
        "transforms",
        "model",
        "grad_cam",
        "uploads",
    },  # what a Space needs
    # Where data sets are and what they hold.
    "layouts": {"archives", "dataset_paths"},
    "known_archives": {"dataset_paths"},
}
IMPORTED_AS = {
    "pillow": "PIL",
    "opencv-python-headless": "cv2",
    "torch-lr-finder": "torch_lr_finder",
}
MODULES = sorted(path.stem for path in REPOSITORY.glob("*.py"))


def tree_of(name: str) -> ast.Module:
    return ast.parse((REPOSITORY / f"{name}.py").read_text())


def imports_of(name: str) -> set[str]:
    found = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_every_module_has_its_layer():
    assert set(MODULES) == COMMANDS | ASSEMBLY | LIBRARY | LEAVES


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    ours = imports_of(name) & set(MODULES)
    assert ours <= MAY_IMPORT[name], f"{name} imports {ours - MAY_IMPORT[name]}"


@pytest.mark.parametrize("name", MODULES)
def test_only_declared_packages_are_imported(name):
    requirements = (REPOSITORY / "requirements.txt").read_text().splitlines()
    packages = {line.partition("==")[0] for line in requirements if "==" in line}
    packages = (packages - set(IMPORTED_AS)) | set(IMPORTED_AS.values())
    others = imports_of(name) - set(MODULES) - set(sys.stdlib_module_names)
    assert others <= packages


@pytest.mark.parametrize("name", BEFORE_THE_ENVIRONMENT)
def test_what_comes_before_the_environment_needs_nothing_of_it(name):
    ast.parse((REPOSITORY / f"{name}.py").read_text(), feature_version=(3, 10))
    foreign = imports_of(name) - set(sys.stdlib_module_names) - set(BEFORE_THE_ENVIRONMENT)
    assert not foreign


@pytest.mark.parametrize("name", MODULES)
def test_nothing_happens_at_import(name):
    harmless = (
        ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
    )  # fmt: skip
    for node in tree_of(name).body:
        text = ast.unparse(node)
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guarded = isinstance(node, ast.If) and text.startswith("if __name__ == '__main__'")
        guarded |= text.startswith("if TYPE_CHECKING:")
        chooses_no_screen = text == "matplotlib.use('Agg')"
        assert isinstance(node, harmless) or docstring or guarded or chooses_no_screen, text


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_commands_have_a_main_that_takes_arguments(name):
    (main,) = (n for n in tree_of(name).body if isinstance(n, ast.FunctionDef) and n.name == "main")
    assert [argument.arg for argument in main.args.args] == ["argv"]
    assert ast.unparse(main.returns) == "int"


def test_only_distributed_reads_the_launchers_variables():
    for name in set(MODULES) - {"distributed"}:
        text = (REPOSITORY / f"{name}.py").read_text()
        for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            assert f'"{variable}"' not in text, f"{name} reads {variable}"


def test_functions_are_short_and_flat():
    """The house's measure: functions up to 60 lines, nesting up to 4."""
    nests = (ast.For, ast.While, ast.If, ast.With, ast.Try)

    def depth(node: ast.AST, outer: int = 0) -> int:
        inner = [depth(c, outer + isinstance(c, nests)) for c in ast.iter_child_nodes(node)]
        return max([outer, *inner])

    for path in [*REPOSITORY.glob("*.py"), *Path(REPOSITORY, "benchmarks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name} is too long"
                assert depth(node) <= 4, f"{path.name}: {node.name} nests too deep"
