"""A run resumes on another machine, or is refused in one line with the remedy: another
precision, no GPU, variables of another launcher, no memory to evaluate in, no compiler."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from support.commands import tiny_flags
from support.runs import events_of, newest_checkpoint, saved_steps, status_of

import train
from resnet50.config.train_config import TrainConfig
from resnet50.records import checkpoint
from resnet50.system import processes
from resnet50.training import build, device, distributed, engine


def start(in_process, data_dir: Path, run_dir: Path, *flags: object):
    words = [*tiny_flags(data_dir, run_dir), "--spot_watch=off", *flags]
    return in_process(train, *words, as_rank=True)


def edit(run_dir: Path, **settings: object) -> None:
    """Change settings by hand."""
    path = run_dir / "config.json"
    record = json.loads(path.read_text())
    record["settings"] |= settings
    path.write_text(json.dumps(record))


def test_a_run_moves_between_precisions_and_says_so(in_process, image_folder, tmp_path):
    """What --amp auto picks on an A10G, a T4 and back, simulated, since one machine has one."""
    run_dir = tmp_path / "run"
    assert start(in_process, image_folder, run_dir, "--max_steps=2", "--amp=bf16").code == 0
    assert json.loads((run_dir / "config.json").read_text())["precision"] == "bf16"
    for amp, steps, text in (
        ("fp16", 3, "in bf16 up to here, in fp16 from here on (--amp fp16 on this machine); its"),
        ("bf16", 4, "in fp16 up to here, in bf16 from here on"),
    ):
        edit(run_dir, amp=amp)
        said = len(events_of(run_dir))
        result = in_process(train, f"--run_dir={run_dir}", f"--max_steps={steps}", as_rank=True)
        assert result.code == 0, result.err
        moved = [event for event in events_of(run_dir)[said:] if "trained in" in event]
        assert [text in event for event in moved] == [True] * bool(text), moved
        contents = checkpoint.load(newest_checkpoint(run_dir))
        assert contents["step"] == steps and contents["precision"] == amp
        assert bool(contents["scaler"]) == (amp == "fp16")


def test_checkpoints_that_do_not_name_their_precision_go_on(in_process, image_folder, tmp_path):
    run_dir = tmp_path / "run"
    assert start(in_process, image_folder, run_dir, "--max_steps=2").code == 0
    contents = checkpoint.load(newest_checkpoint(run_dir))
    for name in ("precision", "device"):
        del contents[name]
    checkpoint.save(run_dir / "checkpoints", 2, contents)
    edit(run_dir, amp="fp16")
    assert in_process(train, f"--run_dir={run_dir}", "--max_steps=3", as_rank=True).code == 0
    (moved,) = (event for event in events_of(run_dir) if "trained in" in event)
    assert moved.startswith("trained in no gradient scaling up to here, in fp16 from here on")


def test_what_a_gpu_trained_goes_on_on_a_cpu_only_if_told_so(in_process, image_folder, tmp_path):
    run_dir = tmp_path / "run"
    assert start(in_process, image_folder, run_dir, "--max_steps=2").code == 0
    record = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(record | {"gpus": ["NVIDIA A10G"]}))
    status = (run_dir / "status.json").read_bytes()
    for as_rank in (False, True):
        result = in_process(train, f"--run_dir={run_dir}", "--max_steps=3", as_rank=as_rank)
        assert result.code == 2 and "trained on NVIDIA A10G, but torch sees no GPU" in result.err
        assert (run_dir / "status.json").read_bytes() == status
    words = [f"--run_dir={run_dir}", "--max_steps=3"]
    assert in_process(train, *words, "--device=cpu", as_rank=True).code == 0
    assert in_process(train, words[0], "--max_steps=4", as_rank=True).code == 0  # now a CPU's


def test_no_memory_to_evaluate_in_costs_no_step(in_process, image_folder, tmp_path):
    def without_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    straight, run_dir = tmp_path / "straight", tmp_path / "run"
    assert start(in_process, image_folder, straight, "--max_steps=5").code == 0
    with in_process.monkeypatch.context() as patch:
        for where in ("predict", "evaluate"):  # in training, and at the start of a resume
            patch.setattr(engine, where, without_memory)
            result = start(in_process, image_folder, run_dir, "--max_steps=5")
            assert result.code == 2 and status_of(run_dir)["state"] == "config error"
            assert max(saved_steps(run_dir)) == 4
            (line,) = (line for line in result.out.splitlines() if "error: not enough" in line)
            assert "Step 4 is saved: the same command evaluates it first" in line
    assert start(in_process, image_folder, run_dir, "--max_steps=5").code == 0
    rows = [checkpoint.load(newest_checkpoint(folder))["rows"] for folder in (straight, run_dir)]
    for mine, other in zip(*rows, strict=True):
        assert all(mine[key] == other[key] for key in mine if key.endswith(("loss", "top1")))


@pytest.mark.parametrize(
    "variables, text",
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "without MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "host"}, "without MASTER_ADDR and MASTER"),
        ({"RANK": "a", "WORLD_SIZE": "1"}, "not numbers"),
        ({"RANK": "3", "WORLD_SIZE": "2"}, "RANK must be from 0 to WORLD_SIZE - 1"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "5"}, "LOCAL_RANK must be from 0"),
        (
            {
                **{"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "PORT"},
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            },
            "no torchrun answers at 127.0.0.1",
        ),
    ],
)
def test_variables_of_another_program_are_named_at_once(
    in_process, image_folder, tmp_path, variables, text
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in variables.items():
        in_process.monkeypatch.setenv(name, port if value == "PORT" else value)
    in_process.monkeypatch.setattr("faulthandler.register", lambda _: None)
    in_process.monkeypatch.setattr(processes, "die_with_launcher", lambda: None)
    begun = time.monotonic()
    result = in_process(train, *tiny_flags(image_folder, tmp_path / "run"))
    assert result.code == 2 and time.monotonic() - begun < 10
    assert text in result.err and "`unset RANK WORLD_SIZE" in result.err
    assert "Traceback" not in result.err and not (tmp_path / "run").exists()


def test_in_another_thread_the_remedy_is_said(capsys):
    codes = []

    def call() -> None:
        try:
            train.main(["--recipe=tiny"])
        except SystemExit as end:
            codes.append(end.code)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert codes == [2]
    assert "it needs the main thread: start it as a program" in capsys.readouterr().err


def test_empty_variables_are_none(monkeypatch):
    for name in distributed.VARIABLES:
        monkeypatch.setenv(name, "")
    assert not distributed.launched_by_torchrun()
    assert distributed.read_ranks() == distributed.Ranks()


def test_children_are_found_whichever_thread_started_them():
    words = [sys.executable, "-S", "-c", "input()"]
    started = []

    def begin() -> None:
        started.append(subprocess.Popen(words, stdin=subprocess.PIPE))

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    begin()
    try:
        assert {child.pid for child in started} <= set(processes.children_of(os.getpid()))
    finally:
        for child in started:
            child.communicate()
    assert not {child.pid for child in started} & set(processes.children_of(os.getpid()))


@pytest.mark.parametrize("kind, variable", [("cpu", "CXX"), ("cuda", "CC")])
def test_compiling_without_a_compiler_is_refused(monkeypatch, tmp_path, kind, variable):
    compiler = tmp_path / "cc"
    monkeypatch.setenv(variable, f"{compiler} -O2")
    with pytest.raises(ValueError, match=rf"needs a compiler \({variable}={compiler} is"):
        device.check_compiler(torch.device(kind))
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    device.check_compiler(torch.device(kind))
    monkeypatch.delenv(variable)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="apt-get install"):
        device.check_compiler(torch.device(kind))


@pytest.mark.parametrize(
    "settings, is_refused",
    [
        ({"device_batch_size": 1, "image_size": 32}, True),
        ({"device_batch_size": 1, "image_size": 64}, False),
        ({"device_batch_size": 2, "image_size": 32}, False),
        (
            {
                **{"device_batch_size": 1, "image_size": 64, "start_image_size": 32},
                "grow_end_epoch": 2.0,
            },
            True,
        ),
    ],
)
def test_one_value_a_channel_is_refused(settings, is_refused):
    cfg = TrainConfig(**settings)
    if not is_refused:
        build.refuse_single_values(cfg)
        return
    with pytest.raises(ValueError, match="--device_batch_size 1 of 32 px"):
        build.refuse_single_values(cfg)
