"""--price_per_hour auto: the type from the metadata service, the price from the file, and said."""

import json
import socket
import time

import pytest
from support.commands import finish, start, tiny_flags, train_words
from support.metadata_service import FakeService
from support.runs import status_of

import bench
import train
from resnet50.config.train_config import TrainConfig
from resnet50.config.train_flags import Request
from resnet50.run import instance_metadata, instance_price
from resnet50.run.rank import with_price
from resnet50.training.distributed import Ranks

PRICED = "this is a g5.4xlarge, $1.624 an hour on demand in us-east-1, read on 2026-11-29"


def on_ec2(service: FakeService, kind: str = "g5.4xlarge", **more: str) -> None:
    """What the service of such an instance says."""
    service.found |= {instance_price.INSTANCE_TYPE: kind, instance_price.REGION: "us-east-1"}
    service.found |= {getattr(instance_price, name): value for name, value in more.items()}


@pytest.fixture
def asks(service, monkeypatch) -> FakeService:
    """A service that this process asks."""
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(instance_metadata, "TIMEOUT_S", 0.3)
    return service


def test_a_run_counts_with_the_price_of_its_instance(image_folder, tmp_path, service):
    """Asked once, by the supervisor; a number from then on, also in what is recorded."""
    on_ec2(service)
    run_dir = tmp_path / "run"
    flags = ["--price_per_hour=auto", "--max_steps=2", "--spot_watch=off"]
    words = train_words(*tiny_flags(image_folder, run_dir), *flags)
    result = finish(start(words, tmp_path, **service.environment))
    assert result.code == 0, result.err
    assert result.out.count(f"--price_per_hour auto: {PRICED}\n") == 1
    assert [path for _, path, _ in service.asked].count(instance_price.INSTANCE_TYPE) == 1
    status = status_of(run_dir)
    assert status["cost_usd"] == pytest.approx(status["paid_s"] / 3600 * 1.624, abs=1e-4)
    for name in ("config.json", "record.json"):
        assert json.loads((run_dir / name).read_text())["settings"]["price_per_hour"] == 1.624


def test_a_rank_by_hand_asks_too_and_a_resume_elsewhere_asks_again(
    in_process, asks, image_folder, tmp_path
):
    for name, value in asks.environment.items():
        in_process.monkeypatch.setenv(name, value)
    flags = [*tiny_flags(image_folder, tmp_path / "run"), "--spot_watch=off"]
    for steps, kind, text in (
        (1, "g5.4xlarge", PRICED),
        (2, "g6.xlarge", "this is a g6.xlarge, $0.8048 an hour"),
        (3, "m5.large", "this is a m5.large, which instance_prices.csv does not have: no price"),
    ):
        on_ec2(asks, kind)
        more = ["--price_per_hour=auto", f"--max_steps={steps}"]
        result = in_process(train, *flags, *more, as_rank=True)
        assert result.code == 0 and text in result.out, result.err
        assert ("cost $" in result.out) == (steps < 3)


def test_another_region_and_a_spot_instance_are_said(asks):
    on_ec2(asks, REGION="eu-west-1", LIFE_CYCLE="spot")
    price, text = instance_price.find()
    assert price == 1.624 and text == (
        f"{PRICED}. It runs in eu-west-1, where that may differ. It is a spot instance, which "
        "costs less"
    )
    on_ec2(asks, REGION="us-east-1", LIFE_CYCLE="on-demand")
    assert instance_price.find() == (1.624, PRICED)


@pytest.mark.parametrize(
    "kind", ["", "<html>Log in to the network</html>", "g5.4xlarge\x1b[31m", "x" * 9000, "-" * 41]
)
def test_what_is_no_type_is_not_printed(asks, kind):
    asks.found[instance_price.INSTANCE_TYPE] = kind
    price, text = instance_price.find()
    assert price == 0 and "does not say which type this machine is: no price" in text
    assert "--price_per_hour 1.2" in text and "\x1b" not in text and len(text) < 300


def test_off_ec2_there_is_no_price_and_nobody_waits(asks, monkeypatch):
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for endpoint in ("http://127.0.0.1:9", f"http://127.0.0.1:{silent.getsockname()[1]}"):
            monkeypatch.setenv(instance_metadata.ENDPOINT, endpoint)
            price, text = instance_price.find()
            assert (
                price == 0 and text.startswith(f"{endpoint} does not answer") and "no price" in text
            )
    asks.garbage, asks.pause_s = [b"HTTP/1.1 200 OK\r\n", b"X: "] * 50, 0.1  # without an end
    monkeypatch.setenv(instance_metadata.ENDPOINT, asks.endpoint)
    assert "does not say which type" in instance_price.find()[1]
    assert time.monotonic() - began < 5
    monkeypatch.setenv(instance_metadata.DISABLED, "true")
    assert instance_price.find()[1].startswith("AWS_EC2_METADATA_DISABLED is true")


def test_bench_projects_with_it(in_process, asks, image_folder):
    for name, value in asks.environment.items():
        in_process.monkeypatch.setenv(name, value)
    on_ec2(asks)
    words = [f"--data_dir={image_folder}", "--recipe=tiny", "--price_per_hour=auto"]
    args = bench.build_parser().parse_args(words)
    assert bench.read_settings(args).price_per_hour == 1.624
    refused = in_process(bench, *words[:2], "--price_per_hour=cheap")
    assert refused.code == 2 and "invalid float or auto value: 'cheap'" in refused.err


def test_several_hosts_have_several_prices(asks):
    request = Request({"price_per_hour": "auto"})
    cfg = TrainConfig(price_per_hour="auto")
    with pytest.raises(ValueError, match="give the sum of all hosts' prices"):
        with_price(cfg, request, Ranks(rank=1, world_size=4, local_world_size=2))
    assert with_price(cfg, request, Ranks()).price_per_hour == 0.0
    given = TrainConfig(price_per_hour=2.0, epochs=3)
    ranks = Ranks(world_size=4, local_world_size=2)
    assert with_price(given, Request({"price_per_hour": 2.0}), ranks) == given
    budget = TrainConfig(price_per_hour=2.0, budget_usd=5.0)  # one that resumes keeps its own
    assert with_price(budget, request, ranks) == budget


def test_a_budget_needs_the_price_and_keeps_that_of_its_start(asks):
    """Dollars became the time of a schedule; another machine's price would be another schedule."""
    given = {"price_per_hour": "auto"}
    cfg = TrainConfig(budget_usd=5.0, price_per_hour="auto")
    with pytest.raises(ValueError, match="--budget_usd 5 needs the price of this machine"):
        instance_price.settled(cfg, given)
    on_ec2(asks)
    planned, said = instance_price.settled(cfg, given)
    assert planned.budget_s == pytest.approx(3600 * 5 / 1.624) and PRICED in said
    for kind, text in (
        ("g5.4xlarge", PRICED),
        ("g6.xlarge", "the run's plan counts with $1.624, so its 3.08 hours stay, and all of them"),
        ("g6.xlarge", "would cost less than $5 here"),
        ("p5.48xlarge", "would cost more than $5 here"),
        ("m5.large", "the run's plan counts with $1.624 an hour, as when it began"),
    ):
        on_ec2(asks, kind)
        resumed, said = instance_price.settled(planned, given)
        assert resumed == planned and text in said and "no price" not in said
