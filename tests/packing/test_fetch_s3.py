"""Packs fetched from a bucket of a real S3 server."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import s3_server
from support.commands import (
    PROGRAM_PATH,
    Result,
    finish,
    program_words,
    run_program,
    start,
    wait_for,
)
from support.s3_server import BUCKET, Server

from resnet50.data.pack import PackedImages

RANGE_BYTES = 20_000
PREFIX = f"{BUCKET}/data/imagenet"


@pytest.fixture(scope="module")
def bucket(packs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server.serve(tmp_path_factory.mktemp("s3")) as server:
        for path in packs.glob("*.pack"):
            server.put(f"data/imagenet/{path.name}", path.read_bytes())
        yield server


def fetch(server: Server, url: str, out: Path, *flags: str, **more: str) -> Result:
    places = [f"--data_from={url}", f"--data_dir={out}"]
    variables = server.environment | more
    return run_program("fetch_in_small_ranges", RANGE_BYTES, *places, *flags, **variables)


def test_both_packs_come_from_a_bucket(bucket, packs, tmp_path):
    out = tmp_path / "out"
    result = fetch(bucket, f"s3://{PREFIX}", out)
    assert result.code == 0 and result.err == "", result.err
    for path in packs.glob("*.pack"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["train.pack", "val.pack"]
    assert "already" in fetch(bucket, f"s3://{PREFIX}/", out).out


def test_damage_in_a_bucket_is_named(bucket, packs, tmp_path):
    pack = PackedImages(packs / "train.pack")
    data = bytearray((packs / "train.pack").read_bytes())
    data[int(pack.offsets[9]) + 200] ^= 1
    bucket.put("damaged/train.pack", bytes(data))
    bucket.put("damaged/val.pack", (packs / "val.pack").read_bytes())
    result = fetch(bucket, f"s3://{BUCKET}/damaged", tmp_path / "out")
    name = pack.name(9).partition(":")[2]
    assert result.code == 2 and "Traceback" not in result.err
    assert f"s3://{BUCKET}/damaged/train.pack: {name}: its payload fails" in result.err
    assert not (tmp_path / "out" / "train.pack").exists()


@pytest.mark.parametrize(
    "url, more, code, message",
    [
        (f"s3://{BUCKET}/x", {}, 2, f"--data_from s3://{BUCKET}/x: there is no train.pack"),
        ("s3://no-such-bucket/x", {}, 2, "there is no bucket no-such-bucket"),
        ("s3://My_Bucket!/x", {}, 2, "give s3://BUCKET/PREFIX"),
        ("s3://me:secret@bucket/x", {}, 2, "no credentials in the URL"),
        (f"s3://{PREFIX}", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 75, "does not answer"),
    ],
)
def test_a_wrong_bucket_is_named(bucket, tmp_path, url, more, code, message):
    result = fetch(bucket, url, tmp_path / "out", "--give_up_s=1", **more)
    assert result.code == code and message in result.err, result.err
    assert "secret" not in result.err and "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


def test_without_credentials_it_says_how_to_give_them(bucket, tmp_path):
    """In the environment, in ~/.aws, or by the role of a machine, which this one is not."""
    places = [f"--data_from=s3://{PREFIX}", f"--data_dir={tmp_path / 'out'}", "--give_up_s=1"]
    variables = {"AWS_ENDPOINT_URL": bucket.environment["AWS_ENDPOINT_URL"], "HOME": str(tmp_path)}
    result = run_program("fetch_in_small_ranges", RANGE_BYTES, *places, **variables)
    assert result.code == 2 and "no credentials" in result.err, result.err
    assert "AWS_ACCESS_KEY_ID" in result.err and "Traceback" not in result.err


@pytest.mark.parametrize("fault", ["fault 503 SlowDown", "gone", "delay 1.5"])
def test_a_bucket_that_is_away_for_a_while_costs_that_while(bucket, packs, tmp_path, fault):
    """Overloaded, restarted, slow: in the middle of a pack."""
    out = tmp_path / "out"
    bucket.tell("delay 0.1")
    num_requests = len(bucket.requests())
    words = program_words(
        "fetch_in_small_ranges",
        4000,
        f"--data_from=s3://{PREFIX}",
        f"--data_dir={out}",
        "--give_up_s=60",
    )
    process = start(words, tmp_path, **bucket.environment, **PROGRAM_PATH)
    wait_for(lambda: len(bucket.requests()) > num_requests + 10)
    bucket.tell(fault)
    time.sleep(2)
    bucket.tell("fine")
    result = finish(process)
    assert result.code == 0, result.err
    assert ("trying again" in result.err) == (not fault.startswith("delay"))
    assert (out / "train.pack").read_bytes() == (packs / "train.pack").read_bytes()


def test_a_bucket_that_refuses_is_named_at_once(bucket, tmp_path):
    bucket.tell("fault 403 AccessDenied")
    result = fetch(bucket, f"s3://{PREFIX}", tmp_path / "out")
    bucket.tell("fine")
    assert result.code == 2 and "refuses these credentials" in result.err, result.err
