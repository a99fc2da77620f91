"""Spot notices: heard in time, and whatever else the metadata service says changes nothing."""

import json
import re
import socket
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.commands import wait_for
from support.metadata_service import NOTICE, REBALANCE, STOPPING

from resnet50.run import instance_metadata, spot_watch


@pytest.fixture
def heard(service, monkeypatch) -> list[str]:
    """What a watch of this process passes on."""
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(instance_metadata, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(spot_watch, "POLL_S", 0.05)
    return []


def watch_of(heard: list[str], **more: object) -> spot_watch.SpotWatch:
    return spot_watch.SpotWatch(heard.append, heard.append, **more)


def test_a_notice_is_heard_and_ends_the_watch(service, heard):
    watch = watch_of(heard)
    assert not watch.poll() and not heard
    service.give_notice()
    watch.run()
    assert heard == [STOPPING]


def test_a_recommendation_is_passed_on_once_and_the_next_one_too(service, heard):
    watch = watch_of(heard)
    service.recommend()
    assert not any(watch.poll() for _ in range(3))
    assert heard == [
        "spot: rebalance recommendation of 2026-01-31T11:50:00Z: saving, then continuing"
    ]
    service.found[spot_watch.REBALANCE] = {"noticeTime": "2026-01-31T11:55:00Z"}
    assert not watch.poll() and len(heard) == 2
    service.give_notice()
    assert watch.poll() and heard[2:] == [STOPPING]


def test_one_token_serves_until_it_is_refused_or_old(service, heard):
    now = [0.0]
    watch = watch_of(heard, clock=lambda: now[0])
    for _ in range(3):
        watch.poll()
    assert service.num_tokens == 1 and len(service.asked) == 7
    assert {code for _, _, code in service.asked} == {200, 404}
    service.tokens.clear()
    service.give_notice()
    assert watch.poll() and service.num_tokens == 2
    now[0] = instance_metadata.TOKEN_S - instance_metadata.RENEW_S
    assert watch.poll() and service.num_tokens == 3  # before the old one is refused
    assert [code for _, _, code in service.asked].count(401) == 1


def test_a_service_that_refuses_every_token_is_not_asked_for_ever(service, heard):
    watch = watch_of(heard)
    service.give_notice()
    watch.metadata.renew_token()
    service.tokens = frozenset()  # whose add() fails: the service gives no token any more
    assert not watch.poll() and not heard
    assert len(service.asked) <= 6


def answered(body: bytes, status: str = "200 OK") -> list[bytes]:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return [head + body]


def notice_with(**changes: object) -> list[bytes]:
    return answered(json.dumps(NOTICE | REBALANCE | changes).encode())


TEXT = json.dumps(NOTICE | REBALANCE).encode()
HEAD = b"HTTP/1.1 200 OK\r\n"
GARBAGE = {
    **{f"code {code}": answered(TEXT, f"{code} X") for code in (204, 301, 400, 401, 403, 404, 500)},
    "redirect": [b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"],
    "nothing": answered(b""),
    "closed at once": [],
    "half a line": [b"HTTP/1."],
    "not HTTP": [b"SSH-2.0-OpenSSH_9.6\r\n\x00\xff\r\n"],
    "HTML": answered(b"<html><body>Log in to the network</body></html>"),
    "not JSON": answered(b"terminate"),
    "half of the JSON": answered(TEXT[:-5]),
    "shorter than it says": [HEAD + b"Content-Length: 500\r\n\r\n" + TEXT[:-5]],
    "not UTF-8": answered(b"\xff\xfe\x00\x80"),
    "null": answered(b"null"),
    "a list": answered(b"[" + TEXT + b"]"),
    "a string": answered(b'"terminate"'),
    "a number": answered(b"1" * 9_000),
    "brackets": answered(b"[" * 9_000),
    "an action that is a number": notice_with(action=1, noticeTime=1),
    "an action that is a list": notice_with(action=["terminate"], noticeTime=["2026"]),
    "an action that nobody knows": notice_with(action="dance", noticeTime="soon"),
    "a time that is null": notice_with(time=None, noticeTime=None),
    "a time that is text": notice_with(time="soon\n", noticeTime="\x1b[2J"),
    "a huge body": answered(b" " * 10_000_000 + TEXT),
    "headers without end": [HEAD, *[b"X: y\r\n"] * 100_000],
    "a header without end": [HEAD, b"X: ", *[b"y" * 1000] * 1000],
    "to be continued": [b"HTTP/1.1 100 Continue\r\n\r\n"] * 100_000,
    "a wrong length": [HEAD + b"Content-Length: many\r\n\r\n"],
    "a wrong chunk": [HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + TEXT],
}
SLOW = {
    "no answer": [b"", b""],
    "a head that drips": [bytes([byte]) for byte in answered(TEXT)[0]],
    "a body that drips": [answered(TEXT)[0][:-90], *[bytes([byte]) for byte in TEXT[-90:]]],
}


@pytest.mark.parametrize("kind", [*GARBAGE, *SLOW])
def test_garbage_changes_nothing(service, heard, kind, capfd):
    service.garbage = GARBAGE.get(kind) or SLOW.get(kind, [])
    service.pause_s = 0.1 if kind in SLOW else 0.0
    if kind == "no answer":
        service.pause_s = 1.0
    began = time.monotonic()
    assert not watch_of(heard).poll()
    service.garbage_for = ("GET", "PUT")  # no token either
    assert not watch_of(heard).poll()
    assert not heard and capfd.readouterr() == ("", "")
    assert time.monotonic() - began < 6 * 4 * instance_metadata.TIMEOUT_S
    service.garbage = None
    service.give_notice()
    watch = watch_of(heard)
    assert watch.poll() and heard == [STOPPING]  # so the answers were the cause


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:9",
        "http://[::1]:9",
        "http://127.0.0.1:99999",
        "http://:80",
        "http://",
        "ftp://127.0.0.1",
        "file:///etc/passwd",
        "127.0.0.1",
        "http://[",
        "\x00",
        "http://a b/\r\n",
    ],
)
def test_where_nobody_answers_the_watch_ends_quietly_and_at_once(
    heard, endpoint, monkeypatch, capfd
):
    if endpoint != "\x00":  # which no environment holds
        monkeypatch.setenv(instance_metadata.ENDPOINT, endpoint)
    watch = watch_of(heard)
    watch.metadata.endpoint = endpoint
    began = time.monotonic()
    watch.run()
    assert time.monotonic() - began < 3 and not heard
    assert capfd.readouterr() == ("", "")


def test_a_service_that_hangs_costs_the_thread_two_time_outs(heard, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(
            instance_metadata.ENDPOINT, f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        began = time.monotonic()
        watch_of(heard).run()
        assert 0.5 < time.monotonic() - began < 3


def test_on_warns_once_and_goes_on_asking(service, heard, capfd, monkeypatch):
    service.garbage, service.garbage_for = answered(b"", "403 Forbidden"), ("PUT",)
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            service.garbage = None
            service.give_notice()

    monkeypatch.setattr(spot_watch.time, "sleep", lambda s: sleep(s) if s == 0.05 else None)
    watch_of(heard, must_answer=True).run()
    assert heard == [STOPPING] and len(naps) == 3
    out, err = capfd.readouterr()
    assert out == "" and err.count("warning: --spot_watch on: http://127.0.0.1") == 1
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "mode, disabled, watches",
    [("auto", "", True), ("auto", "TRUE", False), ("on", "true", True), ("off", "", False)],
)
def test_the_setting_and_the_sdks_switch(service, heard, monkeypatch, mode, disabled, watches):
    monkeypatch.setenv(instance_metadata.DISABLED, disabled)
    service.give_notice()
    spot_watch.start(mode, heard.append, heard.append)
    if watches:
        wait_for(lambda: heard == [STOPPING], 10)
    else:
        time.sleep(0.2)
        assert not heard and not service.asked


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
NOTICES = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(spot_watch.ACTIONS) | JSON,
        "time": st.just(NOTICE["time"]) | JSON,
        "noticeTime": st.just(NOTICE["time"]) | JSON,
    },
)


@given(st.binary() | (JSON | NOTICES).map(json.dumps).map(str.encode))
@example(TEXT)
def test_whatever_comes_is_a_clean_notice_or_none(body):
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    found = found if isinstance(found, dict) else {}
    time_of = {name: found.get(name) == NOTICE["time"] for name in ("time", "noticeTime")}
    notice, rebalance = spot_watch.parse_notice(body), spot_watch.parse_rebalance(body)
    if found.get("action") in spot_watch.ACTIONS and time_of["time"]:
        assert notice == f"{found['action']} at {NOTICE['time']}"
    assert bool(rebalance) >= time_of["noticeTime"]
    assert re.fullmatch(r"|(terminate|stop|hibernate) at [0-9T:.Z-]+", notice, re.ASCII)
    assert re.fullmatch(r"[0-9T:.Z-]*", rebalance, re.ASCII)
