"""Checks that this Python can run the commands, and reports problems in one line, not a traceback.

Each command imports this file before anything else. So it uses only modules that Python has
already loaded, and, unlike any other file here, acts on import; in programs other than our
commands, it does nothing.
"""

import os
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OLDEST = (3, 11)
# Standard library modules that nothing here imports: a file of that name is harmless.
UNUSED = {"antigravity", "idlelib", "lib2to3", "test", "this", "turtle", "turtledemo"}
PACKAGES = {
    *("PIL", "cv2", "gradio", "huggingface_hub", "matplotlib", "numpy", "onnx", "onnxruntime"),
    *("safetensors", "simplejpeg", "torch", "torchvision", "tqdm", "triton"),
}


def command() -> str:
    """The file name of this clone's command that is running; empty for other programs."""
    path = os.path.abspath(getattr(sys.modules.get("__main__"), "__file__", None) or "")
    folder, name = os.path.split(path)
    return name if folder == TOP else ""


def other_python() -> str:
    """How to get a Python with the packages."""
    if sys.prefix != sys.base_prefix:  # an incomplete environment
        return f"{sys.executable} -m pip install -r {TOP}/requirements.txt"
    named = os.environ.get("VENV")
    for folder in [*([named] if named else []), os.path.join(TOP, ".venv"), ".venv"]:
        python = os.path.join(folder, "bin", "python")
        if os.path.exists(python):
            return f"use the environment's, {python}"
    return (
        "activate the environment that ./setup_and_train.sh made, or make one: python3 -m venv "
        ".venv && .venv/bin/pip install -r requirements.txt"
    )


def wrong_python() -> str:
    """Why this Python, or this system, cannot run the commands; empty if it can."""
    if sys.version_info[:2] < OLDEST:
        here, oldest = ".".join(map(str, sys.version_info[:2])), ".".join(map(str, OLDEST))
        return f"Python {oldest} is needed, this is {here} ({sys.executable}): {other_python()}"
    if os.name == "nt" and command() != "app.py":
        return "Linux is needed: on Windows start it in WSL2"
    return ""


def hidden_module() -> str:
    """A file that would be imported in place of a module of Python or of a package; empty
    if there is none."""
    library = os.path.dirname(os.__file__)
    for folder in sys.path:
        if folder == library:
            break
        for name in sorted(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else ():
            stem, path = name.removesuffix(".py"), os.path.join(folder, name)
            is_module = name != stem or os.path.exists(os.path.join(path, "__init__.py"))
            is_pythons = stem in sys.stdlib_module_names - UNUSED and stem not in sys.modules
            # Packages may be in a folder on PYTHONPATH, but not beside the commands.
            if is_module and (is_pythons or (stem in PACKAGES and folder == TOP)):
                return f"{path} hides the module {stem} that the commands need: rename it"
    return ""


def on_uncaught(kind: type, error: BaseException, traceback: object) -> None:
    """Replaces the traceback of a failed import by the name of the missing package, and that of a
    Ctrl-C during the imports, which take seconds, by a line."""
    if kind is KeyboardInterrupt:
        print(f"{command()}: interrupted", file=sys.stderr, flush=True)
        return
    name = (getattr(error, "name", None) or "").partition(".")[0]
    is_ours = os.path.exists(os.path.join(TOP, name)) or os.path.exists(f"{TOP}/{name}.py")
    if kind is not ModuleNotFoundError or not name or is_ours:
        sys.__excepthook__(kind, error, traceback)
        return
    end(f"this Python ({sys.executable}) has no package {name}: {other_python()}")


def end(problem: str) -> None:
    print(f"{command()}: error: {problem}", file=sys.stderr, flush=True)
    sys.exit(2)


def check() -> None:
    """End the program with exit code 2 if one of our commands cannot run."""
    if not command():
        return
    problem = wrong_python() or hidden_module()
    if problem:
        end(problem)
    sys.excepthook = on_uncaught
    # A file name that is not UTF-8 must not end the command that prints it.
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") == "strict":
            stream.reconfigure(errors="backslashreplace")
    # Processes that Python starts with -c or -m (multiprocessing's) search the current folder
    # first, where a file may shadow Python's own. Ranks start without it (run/supervisor.py).
    os.environ["PYTHONSAFEPATH"] = "1"


check()
