"""host/commands.py: what hangs is ended and named, with all that it has started."""

import time

import pytest
from support.commands import processes_mentioning, wait_for

from host import commands


def test_a_program_that_hangs_is_ended_and_named(monkeypatch, capsys):
    monkeypatch.setattr(commands, "PATIENCE_S", 0.1)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"^sleep 300.25 did not end in 1 s, and was stopped$"):
        commands.run(["sleep", "300.25"], 1)
    assert time.monotonic() - start < 10
    assert capsys.readouterr().err == "still waiting for sleep 300.25, up to 1 s\n"
    assert not processes_mentioning("300.25")


@pytest.mark.parametrize("deaf", ["", "trap '' TERM; "])
def test_what_it_has_started_ends_too(monkeypatch, deaf):
    """As an ssh, or a program that asks for a password, below git; deaf to SIGTERM or not."""
    monkeypatch.setattr(commands, "END_S", 0.5)
    script = f"{deaf}sleep 300.75 & wait; sleep 300.75"
    with pytest.raises(ValueError, match="git fetch from x did not end in 1 s"):
        commands.run(["sh", "-c", script], 1, what="git fetch from x", own_session=True)
    wait_for(lambda: not processes_mentioning("300.75"), 10, "the end of what hung")


def test_tools_of_root_are_found_without_being_on_the_path(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    script = 'echo "$PATH"; date --date=@0 +%B'
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")  # what is read must be English
    path, month = commands.run(["sh", "-c", script]).stdout.split()
    assert commands.run(["sh", "-c", "echo $LC_ALL"], english=False).stdout == "de_DE.UTF-8\n"
    assert path.split(":") == ["/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"]
    assert month == "January"


def test_mistakes_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match="no-such-program is not installed"):
        commands.run(["no-such-program"])
    assert commands.run(["false"]).returncode == 1
    assert commands.run(["printf", r"gr\366sse"]).stdout == r"gr\xf6sse"
    assert commands.run(["cat"]).stdout == ""  # it has no input to wait for
