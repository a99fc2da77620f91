"""How a run is steered where its disk does not take what was decided."""

import time
from types import SimpleNamespace

import torch

from resnet50.records.checkpoint_writer import CheckpointWriter
from resnet50.run import steering
from resnet50.run.start import Run
from resnet50.training.course import Course, Event


def test_a_disk_that_takes_no_event_is_tried_every_time_and_said_now_and_then(
    tmp_path, monkeypatch
):
    event, said = Event(12, 50), []
    plan, state = SimpleNamespace(course=Course(100)), SimpleNamespace(step=10)
    note = lambda step, text: said.append(text)
    run = SimpleNamespace(
        parts=SimpleNamespace(plan=plan, state=state),
        log=SimpleNamespace(run_dir=tmp_path / "run", paid_s=7.0, event=note),
        controller=SimpleNamespace(decide=lambda *_: event),
        steer_warned_s=-float("inf"),
    )
    for _ in range(3):  # its folder is gone
        assert steering.decide(run, 12) is None
    assert len(said) == 1 and "No such file" in said[0] and "stays as it is" in said[0]
    monkeypatch.setattr(steering, "WARN_EVERY_S", 0.0)
    assert steering.decide(run, 12) is None and len(said) == 2
    (tmp_path / "run").mkdir()
    assert steering.decide(run, 12) == event and len(said) == 2


def test_the_next_checkpoint_is_due_sooner_but_saving_takes_no_more_than_its_share(tmp_path):
    writer = CheckpointWriter(tmp_path / "checkpoints", keep=2)
    run = SimpleNamespace(writer=writer, save_due_s=time.monotonic() + 300)
    Run.save_sooner(run, 0.05)
    assert run.save_due_s < time.monotonic()  # nothing was saved yet: at once
    begun_s = time.monotonic()
    writer.start(1, {"step": 1, "model": {"weight": torch.zeros(10**6)}}, is_best=False)
    writer.wait()
    took_s = time.monotonic() - begun_s
    assert not writer.take_failures() and 0 < writer.took_s <= took_s
    run.save_due_s = begun_s + 300
    Run.save_sooner(run, 0.05)
    assert begun_s + 20 * writer.took_s <= run.save_due_s <= begun_s + 21 * took_s
    run.save_due_s = before = begun_s + 19 * writer.took_s
    Run.save_sooner(run, 0.05)  # which never puts it off
    assert run.save_due_s == before
