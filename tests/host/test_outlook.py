"""Setup's last lines before the training: what will happen, and when it will be over."""

import json
import re
from pathlib import Path

import pytest
from support.commands import REPOSITORY, run

from host import outlook
from resnet50.records import status

REPORT = {"recipe": {"name": "mild28", "epochs": 28, "hours": 10.0, "cost_usd": 16.24}}


@pytest.fixture
def says(in_process, tmp_path):
    """Calls it for a run folder, beside bench.py's report."""
    report = tmp_path / "bench.json"
    report.write_text(json.dumps(REPORT))

    def call(*flags: str, report: Path | None = report):
        more = [f"--report={report}"] if report else []
        return in_process(outlook, f"--run_dir={tmp_path / 'run'}", *more, *flags)

    return call


def test_a_budget_is_time_and_so_many_epochs(says):
    result = says("--budget_usd=5", "--price_per_hour=2")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "what will happen: --budget_usd 5 is 2 h 30 min of this host"
    assert "measures this host first" in lines[1] and "whatever interrupts" in lines[1]
    assert lines[2] == "what will happen: projection: about 7 epochs of mild28, which has 28"
    assert "over at about" in lines[3]
    lines = says("--budget_hours=50").out.splitlines()
    assert "about 56 epochs" in lines[2] and "the rest is left over" in lines[2]


def test_a_resume_has_what_is_left(says, tmp_path):
    (tmp_path / "run").mkdir()
    status.write_status(tmp_path / "run", state="interrupted", paid_s=3600.0, remaining_s=7200)
    out = says("--budget_hours=2").out
    assert "is 2 h 00 min of this host, of which 1 h 00 min are spent" in out
    assert "training resumes" in out and "projection" not in out
    assert "about 2 h 00 min left, over at about" in says().out


def test_a_run_has_the_budget_that_it_was_planned_with(says, tmp_path):
    """Also where it is not given again, or the price is another one now."""
    (tmp_path / "run").mkdir()
    status.write_status(tmp_path / "run", state="interrupted", paid_s=3600.0, remaining_s=7200)
    settings = {"budget_usd": 5.0, "price_per_hour": 2.5, "budget_hours": 0.0}
    (tmp_path / "run" / status.CONFIG).write_text(json.dumps({"settings": settings}))
    for words in ([], ["--budget_usd=5", "--price_per_hour=20"]):
        out = says(*words).out
        assert "the budget of the run there is 2 h 00 min of this host, of which 1 h 00 min" in out
        assert "training resumes, and its learning rate comes to its end" in out


def test_without_a_budget_it_takes_as_long_as_its_epochs(says):
    out = says().out
    assert "projection: 28 epochs of mild28 take about 10 h 00 min, $16.24, over at about" in out
    assert "unless the options after -- change that" in says("--has_more").out
    assert "ends after 1,000 steps" in says("--max_steps=1000").out
    assert "not known here: --status tells" in says(report=None).out


@pytest.mark.parametrize("text", ["", "{}", '{"recipe": 3}', "[]"])
def test_a_report_that_says_nothing_is_none(says, tmp_path, text):
    report = tmp_path / "other.json"
    report.write_text(text)
    assert "not known here" in says(report=report).out


def test_each_recipe_and_data_has_a_report_of_its_own(tmp_path):
    """Otherwise the last lines before a training would be about the one that was set up first."""

    def report_of(data: str, *flags: str) -> str:
        words = ["--dry_run", "--only=bench", f"--data_dir={tmp_path / data}", *flags]
        result = run(["bash", REPOSITORY / "setup_and_train.sh", *words], tmp_path, VENV="/none")
        return re.search(r"--json (\S+/bench_\d+\.json)", result.out)[1]

    one = report_of("a", "--recipe=tiny")
    assert report_of("a", "--recipe=tiny", "--price_per_hour=1.2") == one
    assert len({one, report_of("a"), report_of("a", "--recipe=mild28"), report_of("b")}) == 4


def test_dollars_need_a_price(says):
    result = says("--budget_usd=5")
    assert result.code == 2 and "--budget_usd 5 needs the price of this host" in result.err
