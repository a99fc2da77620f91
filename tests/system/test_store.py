"""A folder and a bucket offer the same; credentials come from where the AWS SDKs look."""

import io
import os
import time
from pathlib import Path

import pytest
from support import s3_server

from resnet50.system.apart import run_apart
from resnet50.system.bucket_store import NO_VERSION, PART_BYTES, explained, shared_credentials
from resnet50.system.interruption import Interrupted
from resnet50.system.store import StoreError, open_store

BIG = os.urandom(2 * PART_BYTES + 1000)


def do_everything(url: str) -> bool:
    """What every store has to do; AssertionError if it does not."""
    store = open_store(url, "--mirror")
    assert store.list() == {} and store.get("a") is None and store.entry("a") is None
    store.put("a", b"first")
    data, version = store.get("a")
    entry = store.entry("a")
    assert data == b"first" and entry.num_bytes == 5 and entry.version == version
    assert abs(store.now("b") - entry.modified_s) < 5 and set(store.list()) == {"a"}
    assert store.create("a", b"no") is None and store.get("a") == (b"first", version)
    assert store.replace("a", b"no", NO_VERSION) is None
    newer = store.replace("a", b"second", version)
    assert newer and store.get("a") == (b"second", newer)
    assert store.replace("a", b"no", version) is None and store.replace("c", b"no", version) is None
    assert store.create("deep/er/d", b"") and store.get("deep/er/d")[0] == b""
    store.test_conditions("a")
    assert store.is_conditional
    store.put_file("deep/big", io.BytesIO(BIG))
    assert store.size("deep/big") == len(BIG)
    assert store.read("deep/big", PART_BYTES - 3, 10) == BIG[PART_BYTES - 3 : PART_BYTES + 7]
    assert store.read("deep/big", len(BIG) - 3, 10) == BIG[-3:]
    assert set(store.list("deep")) == {"deep/big", "deep/er/d"} and len(store.list(limit=1)) == 1
    for name in ("a", "deep/big", "deep/er/d", "a"):
        store.delete(name)
    assert store.list() == {}
    for ask in (store.size, lambda name: store.read(name, 0, 1)):
        with pytest.raises(StoreError) as error:
            ask("a")
        assert f"{store.url}/a: " in str(error.value)
    return True


def test_a_folder(tmp_path):
    (tmp_path / "store").mkdir()
    assert run_apart(lambda say: everything_but_guard(tmp_path / "store"), print, lambda: False)


def everything_but_guard(folder: Path) -> bool:
    """A folder has a file more, on which its writers wait for each other: not listed."""
    return do_everything(str(folder)) and [path.name for path in folder.glob(".*")] == [".guard"]


def test_a_bucket(tmp_path, monkeypatch):
    with s3_server.serve(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{s3_server.BUCKET}/some/prefix"
        assert run_apart(lambda say: do_everything(url), print, lambda: False)


def test_a_hanging_child_is_ended_when_the_caller_wants_to_stop():
    began = time.monotonic()
    with pytest.raises(Interrupted):
        run_apart(lambda say: time.sleep(60) or True, print, lambda: time.monotonic() > began + 0.3)
    assert time.monotonic() - began < 5


@pytest.fixture
def aws(tmp_path, monkeypatch) -> Path:
    """The folder of ~/.aws, and nothing in the environment."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path


def test_keys_and_region_from_the_files_of_aws(aws, monkeypatch):
    assert shared_credentials("--mirror") == {}
    keys = "aws_access_key_id = {0}\naws_secret_access_key = {0}%\n"
    text = f"[default]\n{keys.format('a')}\n[work]\n{keys.format('b')}aws_session_token = t\n"
    (aws / "credentials").write_text(text)
    (aws / "config").write_text(
        "[default]\nregion = eu-west-1\n[profile work]\nregion = us-west-2\n"
    )
    found = {"region": "eu-west-1", "aws_access_key_id": "a", "aws_secret_access_key": "a%"}
    assert shared_credentials("--mirror") == found
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert shared_credentials("--mirror")["aws_session_token"] == "t"
    assert shared_credentials("--mirror")["region"] == "us-west-2"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of the environment")
    monkeypatch.setenv("AWS_REGION", "here")
    assert shared_credentials("--mirror") == {}


def test_a_profile_that_needs_a_login_says_what_to_run(aws):
    (aws / "config").write_text("[default]\nsso_session = me\n")
    with pytest.raises(
        ValueError, match=r"gets its keys by sso_session.*aws configure export-cred"
    ):
        shared_credentials("--mirror")


@pytest.mark.parametrize(
    "text, said, is_passing",
    [
        (
            "status code: 403 Forbidden: <Code>InvalidAccessKeyId</Code><AWSAccessKeyId>K",
            "(Inv",
            False,
        ),
        ("PUT http://169.254.169.254/latest/api/token in 403.1ms", "no credentials", False),
        ("Received redirect without LOCATION, this normally indicates", "set AWS_REGION", False),
        ("in 403.5ms - status code: 500: <Code>InternalError</Code>", "InternalError", True),
        (
            "error sending request\nsource: ConnectError(dns error)",
            "host's name is not known",
            True,
        ),
        ("something new of 403 lines", "it failed", True),
    ],
)
def test_errors_are_one_line_of_what_matters(text, said, is_passing):
    error = explained(RuntimeError(text), "s3://bucket/run", "bucket")
    assert said in str(error) and "\n" not in str(error) and error.is_passing == is_passing
    assert "AWSAccessKeyId" not in str(error)


def test_one_trouble_is_one_whatever_the_server_says_of_it():
    """An answer to a HEAD has no code."""
    texts = "status code: 403 Forbidden: <Code>AccessDenied</Code>", "status code: 403 Forbidden: "
    errors = [explained(RuntimeError(text), "s3://bucket/run", "bucket") for text in texts]
    assert errors[0].reason != errors[1].reason and errors[0].trouble == errors[1].trouble
    other = explained(RuntimeError("<Code>NoSuchBucket</Code>"), "s3://bucket/run", "bucket")
    assert other.trouble != errors[0].trouble
