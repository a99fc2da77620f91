"""Every command that a page shows: run where it can be, checked flag by flag where it cannot."""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import board
import photo_corpus
import pytest
import time_to_accuracy
from PIL import Image
from support.commands import AS_USERS_HAVE_IT, REPOSITORY, environment
from support.pictures import make_folder
from torch.distributed.run import get_args_parser

import app
import bench
import dataset_paths
import evaluate
import export
import lr_finder
import prepare_data
from resnet50.config import recipe, train_flags
from resnet50.config.recipes import DEFAULT_RECIPE, RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.export import formats
from resnet50.packing import fetch, parquet
from resnet50.training.plan import make_plan

PAGES = (
    "README.md",
    "ImageNet_Setup_Guide.md",
    "COMPARISON.md",
    "docs/publishing.md",
    "docs/recipes.md",
    "docs/reliability.md",
    "docs/scaling.md",
    "benchmarks/README.md",
    "findings/README.md",
)
PARSERS = {
    f"{command.__name__}.py": command.build_parser
    for command in (app, bench, evaluate, export, lr_finder)
}
MOST_LINES, MOST_WORDS = 220, 2000  # of the README
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
COMMANDS = [
    (page, line.partition("   #")[0].strip())
    for page in PAGES
    for block in BLOCK.findall((REPOSITORY / page).read_text())
    for line in block.splitlines()
    if line.strip()
]


def run_benchmark(*words: object, **more: str) -> str:
    """What a command of the repository prints; it must succeed."""
    result = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=REPOSITORY,
        env=environment(**more),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# Minutes or hours of a ResNet50, a million files, a download.
BY_HAND = [
    f"benchmarks/{name}.py"
    for name in (
        *("save_and_resume", "start_up", "empty_disk", "progress_picture", "methods"),
        *("fashion_part", "budget_or_limit"),
    )
]


def check_benchmark(words: list[str]) -> None:
    """Run a benchmark in a short form; read the flags of one that another test runs, or none."""
    script_commands = (shlex.split(command) for _, command in COMMANDS if words[1] in command)
    match words:
        case ["python", script, *flags] if words != next(script_commands):
            check_parsed(script, flags)  # the first one is run, below
        case ["python", "benchmarks/photo_corpus.py", *flags]:
            photo_corpus.build_parser().parse_args(flags)
        case [
            "python",
            "benchmarks/loader.py"
            | "benchmarks/loader_profile.py"
            | "benchmarks/crop_quality.py" as script,
            *flags,
        ]:
            quick = {
                "benchmarks/loader_profile.py": ["--image_sizes=64", "--batches=1", "--rounds=1"],
                "benchmarks/loader.py": ["--image_sizes=64", "--rounds=1", "--images_per_round=50"],
                "benchmarks/crop_quality.py": ["--image_sizes=64", "--num_crops=5"],
            }
            with tempfile.TemporaryDirectory() as folder:
                photos = make_folder(Path(folder) / "photos", 20, 1)
                places = [f"--data_dir={photos}", f"--work_dir={folder}/work"]
                out = run_benchmark(script, *flags, *quick[script], *places)
            assert "64 px" in out
        case ["python", "benchmarks/time_to_accuracy.py", *flags]:  # run in the long form, below
            time_to_accuracy.build_parser().parse_args(flags)
        case ["python", "benchmarks/app_screenshots.py", picture, *flags]:
            assert (REPOSITORY / picture).is_file()  # run in test_app.py
            check_parsed(words[1], [picture, *flags])
        case ["python", script, *flags] if script in BY_HAND:
            check_parsed(script, flags)
        case ["python", "benchmarks/recipe_costs.py", "--picture", path]:
            assert (REPOSITORY / path).is_file()  # run in test_recipes.py
        case ["python", "benchmarks/recipe_costs.py"]:
            out = run_benchmark(*words[1:])
            table = out[out.index("| recipe") : out.index("| machine")]
            assert table.strip() in (REPOSITORY / "docs" / "recipes.md").read_text()
        case ["python", "benchmarks/loop_overhead.py", *flags]:
            quick = ["--tiny", "--image_size=32", "--batch_size=4", "--steps=2", "--rounds=1"]
            out = run_benchmark(*words[1:2], *flags, *quick)
            assert "train.py" in out and "ratio" in out
        case ["python", "benchmarks/cpu_step.py" as script]:
            out = run_benchmark(script, "--sizes=32x4", "--rounds=1")
            assert "| 32 px x 4 | MatrixConv2d, fused AdamW | " in out
        case ["python", "benchmarks/neighbors.py" as script, *flags]:
            quick = ["--image_size=32", "--num_workers=1", "--niceness=10", "--rounds=1"]
            with tempfile.TemporaryDirectory() as folder:
                photos = make_folder(Path(folder) / "photos", 20, 1)
                quick += ["--seconds=0", f"--data_dir={photos}"]
                assert "| launch | 1 | 10 | " in run_benchmark(script, *flags, *quick)
        case ["python", "benchmarks/board.py", *records]:
            board.build_parser().parse_args(records)  # run in test_board.py
        case ["python", "benchmarks/gpu_day.py" as script, *flags]:
            check_parsed(script, flags)  # run in test_gpu_day.py
        case _:
            raise AssertionError(f"this test does not know how to check: {words}")


# Ends a program as soon as its parser has accepted the command line.
PARSE_ALONE = """
import argparse, runpy, sys
from pathlib import Path
parse = argparse.ArgumentParser.parse_args
argparse.ArgumentParser.parse_args = lambda *words: sys.exit(parse(*words) is None)
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def check_parsed(script: str, flags: list[str]) -> None:
    """The script's own parser accepts the command; nothing else of it is run."""
    run_benchmark("-c", PARSE_ALONE, script, *flags)


def check_setup(flags: list[str]) -> None:
    """A dry run of setup_and_train.sh; for what looks at a run, only that the option exists."""
    looks = flags[0] in ("--status", "--attach", "--logs", "--stop")
    result = subprocess.run(
        ["./setup_and_train.sh", *(["--help"] if looks else ["--dry_run", *flags])],
        cwd=REPOSITORY,
        env=environment(VENV="/none"),  # whoever made .venv
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0 and "usage: " not in result.stderr, result.stderr
    assert flags[0] in result.stdout if looks else "\n+ " in result.stdout


def check_torchrun(flags: list[str]) -> None:
    """torchrun's own parser knows them; HOST:PORT is for the reader to fill in."""
    parsed = get_args_parser().parse_args([*flags, "train.py"])
    if parsed.nnodes != "1:1":
        assert parsed.rdzv_backend == "c10d" and parsed.rdzv_endpoint and parsed.rdzv_id


def check_pytest(flags: list[str]) -> None:
    """Options of the suite and of pytest-xdist, markers that are declared, tests that are there."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    markers = settings["tool"]["pytest"]["ini_options"]["markers"]
    parser = argparse.ArgumentParser()
    parser.add_argument("--long", action="store_true")
    parser.add_argument("-n", type=int)
    parser.add_argument("-m", choices=[marker.partition(":")[0] for marker in markers])
    parser.add_argument("paths", nargs="*")
    assert '"--long"' in (REPOSITORY / "tests" / "conftest.py").read_text()
    assert all((REPOSITORY / path).exists() for path in parser.parse_args(flags).paths)


def as_python(words: list[str]) -> list[str]:
    """The command that a launcher, or a program of an environment, runs."""
    if words[0] == "torchrun":
        script = words.index("train.py")
        check_torchrun(words[1:script])
        words = ["python", *words[script:]]
    if words[0] == "sbatch":  # test_slurm.py runs it
        script = words.index("launch/slurm.sbatch")
        words = ["python", "train.py", f"--run_dir={words[script + 1]}", *words[script + 2 :]]
    folder, _, name = words[0].rpartition("/bin/")
    if folder in (".venv", "/mnt/imagenet/resnet50", "/mnt/imagenet/kaggle"):
        words = [name, *words[1:]]
    return words


def check_training(flags: list[str]) -> None:
    """Plan a run on as many images as ImageNet has."""
    presets = {name: preset.summary for name, preset in RECIPES.items()}
    settings = train_flags.parse(train_flags.build_parser(presets, ""), flags).settings
    preset = RECIPES[settings.get("recipe", "onecycle50")].settings
    size = settings.get("total_batch_size", preset["total_batch_size"])
    settings = {**preset, **settings, "device_batch_size": size}
    make_plan(TrainConfig(**settings), 10**6)


def check(words: list[str]) -> None:
    """Read a command's flags with the parser of its script; ends the program on an unknown one."""
    words = as_python(words)
    match words:
        case ["./setup_and_train.sh", *flags]:
            check_setup(flags)
        case ["python", "-m", "venv", made]:  # whose program a later line runs
            assert any(command.startswith(f"{made}/bin/") for _, command in COMMANDS)
        case ["pip", "install", "kaggle", "six"]:
            pass
        case ["git", "clone", "URL", folder]:
            assert folder.endswith("/ResNet50_ImageNet1K_Training")
        case ["mkdir", "-p", folder]:
            assert any(f"--data_dir {folder} " in command for _, command in COMMANDS)
        case ["scp", "setup_and_train.sh", _] | ["ssh", _]:
            pass
        case ["aria2c", _, _, link]:
            assert link.removeprefix("magnet:?xt=urn:btih:") in dataset_paths.HOW_TO_GET_IMAGENET
        case ["kaggle", *words]:
            command = " ".join(["kaggle", *words[:-2]])  # without the folder to write to
            assert command in dataset_paths.HOW_TO_GET_IMAGENET
        case ["python", "train.py", *flags]:
            check_training(flags)
        case ["tmux", "new-session", "-d", "-s", _, inner]:
            check(shlex.split(inner))
        case ["python", "prepare_data.py", *flags]:
            parser = prepare_data.build_parser()
            prepare_data.check(parser, parser.parse_args(flags))
        case ["python", script, *flags] if script in PARSERS:
            PARSERS[script]().parse_args(flags)
        case ["python", script, *_] if script.startswith("benchmarks/"):
            check_benchmark(words)
        case ["python", "dataset_paths.py"]:
            assert (REPOSITORY / words[1]).is_file()
        case ["python", "-m", "pytest", *flags]:
            check_pytest(flags)
        case ["python", "-m", "resnet50.packing.parquet", *flags]:
            parquet.build_parser().parse_args(flags)
        case ["python", "-m", "resnet50.packing.fetch", *flags]:
            fetch.build_parser().parse_args(flags)
        case ["aws", "s3", "cp", packed, url]:  # one of the files that --data_from brings
            assert packed.rpartition("/")[2] == url.rpartition("/")[2] in ("train.pack", "val.pack")
        case ["sky", "jobs", "launch", path, "--env", setting]:
            name = setting.partition("=")[0]
            assert f"\n  {name}: " in (REPOSITORY / path).read_text()
        case ["pip", "install", *packages]:  # of those that the error message of the command names
            assert packages == list(formats.PACKAGES[formats.ONNX].values())
        case ["kubectl", "apply", "-f", path]:  # read in test_trainjob.py
            assert (REPOSITORY / path).is_file()
        case ["source", path]:
            assert path.endswith("/bin/activate")
        case ["cd", path]:
            assert path.endswith("/ResNet50_ImageNet1K_Training")
        case ["sudo", "-iu", "ubuntu", "git", "clone", _, folder]:
            assert folder == "ResNet50_ImageNet1K_Training"
        case ["sudo", "-iu", "ubuntu", script, *flags]:
            assert script == "ResNet50_ImageNet1K_Training/setup_and_train.sh"
            check_setup(flags)
        case _:
            raise AssertionError(f"this test does not know how to check: {words}")


@pytest.mark.parametrize("page, command", COMMANDS, ids=[f"{p}: {c}" for p, c in COMMANDS])
def test_command_is_understood(page, command):
    check(shlex.split(command))


@pytest.mark.long
def test_the_time_to_accuracy_is_measured(tmp_path):
    photos = make_folder(tmp_path / "photos", 24, 2)
    quick = ["--recipe=tiny", "--minutes=0.02", "--seeds=1", "--plain_batch_size=4"]
    places = [f"--data_dir={photos}", f"--out={tmp_path / 'out'}"]
    out = run_benchmark("benchmarks/time_to_accuracy.py", *quick, *places, **AS_USERS_HAVE_IT)
    assert "| seed |" in out and (tmp_path / "out" / "curves.png").is_file()


@pytest.mark.long
def test_saves_and_starts_are_measured(packs, tmp_path):
    """A change of what they measure must not break what is run by hand."""
    quick = [f"--data_dir={packs}", "--steps=1", "--rounds=1", f"--mirror={tmp_path}"]
    out = run_benchmark("benchmarks/save_and_resume.py", *quick)
    assert "one that is copied to --mirror" in out and "resume at step 4,000 of 5,004" in out
    assert not list(tmp_path.iterdir())
    out = run_benchmark("benchmarks/empty_disk.py", f"--data_dir={packs}", "--gb=0.02")
    assert "| from an empty disk to the first step | " in out
    quick = ["--recipe=tiny", "--minutes=0.7", "--seeds=0", f"--results={tmp_path / 'results'}"]
    for _ in range(2):  # the second time from the results
        out = run_benchmark("benchmarks/budget_or_limit.py", f"--data_dir={packs}", *quick)
        assert "| 0.7 | 0 | " in out and "points" in out


@pytest.mark.long
def test_the_picture_of_the_progress_is_made(tmp_path):
    photos, path = make_folder(tmp_path / "photos", 400, 2), tmp_path / "out.png"
    words = [f"--data_dir={photos}", f"--out={path}", "--recipe=tiny", "--percent=5"]
    out = run_benchmark("benchmarks/progress_picture.py", *words)
    assert "epoch 2/" in out and path.is_file()


def test_the_two_commands_come_first():
    first = [command for page, command in COMMANDS if page == "README.md"][:2]
    assert first == ["./setup_and_train.sh --demo", "./setup_and_train.sh --test"]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_picture_a_page_names_is_there(page):
    text = (REPOSITORY / page).read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", text):
        path = REPOSITORY / Path(page).parent / target
        assert path.is_file(), target
        if target.endswith(".png"):
            Image.open(path).verify()
    for name in re.findall(r"`([a-z_/]+\.(?:py|sh|yaml|sbatch))`", text):
        assert (REPOSITORY / name).is_file(), name


def test_the_reading_order_names_every_room():
    text = (REPOSITORY / "README.md").read_text()
    order = text[text.index("## Reading order") : text.index("## License")]
    rooms = {path.parent.name for path in REPOSITORY.glob("resnet50/*/__init__.py")}
    named = set(re.findall(r"^ *(\w+)/ ", order, re.MULTILINE))
    assert named == rooms | {
        *("resnet50", "host", "launch", "docs", "benchmarks", "findings", "tests")
    }


def test_the_recipe_table_names_every_recipe():
    text = (REPOSITORY / "docs" / "recipes.md").read_text()
    assert recipe.as_markdown(RECIPES, DEFAULT_RECIPE) in text
    assert set(re.findall(r"^\| `(\w[\w-]+)`", text, re.MULTILINE)) == set(RECIPES)


def anchors_of(path: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_heading_finds_it(page):
    path = REPOSITORY / page
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", path.read_text()):
        assert anchor in anchors_of(path.parent / target if target else path), (target, anchor)


def test_no_page_is_left_out():
    tracked = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    assert set(tracked.stdout.split()) == set(PAGES)


def test_the_readme_is_short():
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= MOST_LINES and len(text.split()) <= MOST_WORDS
