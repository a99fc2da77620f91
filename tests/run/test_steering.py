"""How a run is steered where its disk does not take what was decided."""

from types import SimpleNamespace

from resnet50.run import steering
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
