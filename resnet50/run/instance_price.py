"""--price_per_hour auto: what this machine costs, from its type and a file of on-demand prices.

EC2's metadata service says which type this is; config/instance_prices.csv has the price. Where
either is missing there is no price, and that is said.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from resnet50.config import instance_prices
from resnet50.config.fields import AUTO
from resnet50.run import instance_metadata
from resnet50.run.instance_metadata import Metadata

if TYPE_CHECKING:  # host/ reads prices with a Python that need not be ours
    from resnet50.config.train_config import TrainConfig

INSTANCE_TYPE = "/latest/meta-data/instance-type"
REGION = "/latest/meta-data/placement/region"
LIFE_CYCLE = "/latest/meta-data/instance-life-cycle"  # on-demand, spot, ...
NAME = re.compile(r"[a-z0-9.-]{2,40}", re.ASCII)  # printed, so strict
BY_HAND = "no price. Give it as a number to see what the run costs: --price_per_hour 1.2"


def settled(cfg: "TrainConfig", given: Mapping[str, object]) -> tuple["TrainConfig", str]:
    """The settings with a number for `auto`, 0 if no price is known, and what to say of it; as they
    were, and an empty text, if that was not asked for.

    given: options that were given by hand. Raises ValueError for a budget in dollars without a
    price. That of a run that resumes was turned into time once, and keeps the price of then.
    """
    if given.get("price_per_hour") != AUTO:
        return cfg, ""
    price, text = find()
    if cfg.budget_usd and cfg.price_per_hour != AUTO:
        return cfg, f"--price_per_hour auto: {kept(cfg, price, text)}"
    if cfg.budget_usd and not price:
        raise ValueError(
            f"--budget_usd {cfg.budget_usd:g} needs the price of this machine. --price_per_hour "
            f"auto: {text}"
        )
    return dataclasses.replace(cfg, price_per_hour=price), f"--price_per_hour auto: {text}"


def kept(cfg: "TrainConfig", price: float, text: str) -> str:
    """What a resume says of the price that its dollars were turned into time with. price, text: of
    the machine that it runs on now."""
    plan = f"the run's plan counts with ${cfg.price_per_hour:g}"
    if not price:
        return f"{plan} an hour, as when it began"
    if price == cfg.price_per_hour:
        return text
    more_or_less = "more" if price > cfg.price_per_hour else "less"
    return (
        f"{text}; {plan}, so its {cfg.budget_s / 3600:.3g} hours stay, and all of them would cost "
        f"{more_or_less} than ${cfg.budget_usd:g} here"
    )


def find() -> tuple[float, str]:
    """Dollars an hour, 0 if they are not known, and a sentence about them.

    Takes a second where nobody answers (TIMEOUT_S of instance_metadata.py), and a few at most.
    """
    metadata = Metadata()
    if instance_metadata.is_disabled():
        return 0.0, f"{instance_metadata.DISABLED} is true, so nobody asks EC2: {BY_HAND}"
    if not metadata.renew_token():
        return 0.0, f"{metadata.endpoint} does not answer, as it would on EC2: {BY_HAND}"
    name = name_at(metadata, INSTANCE_TYPE)
    if not name:
        return 0.0, f"{metadata.endpoint} does not say which type this machine is: {BY_HAND}"
    row = instance_prices.read().get(name)
    if row is None:
        return 0.0, f"this is a {name}, which {instance_prices.FILE.name} does not have: {BY_HAND}"
    text = f"this is a {name}, ${row.usd_per_hour:g} an hour {row.terms}"
    region = name_at(metadata, REGION)
    if region not in ("", row.region):
        text += f". It runs in {region}, where that may differ"
    if name_at(metadata, LIFE_CYCLE) == "spot":
        text += ". It is a spot instance, which costs less"
    return row.usd_per_hour, text


def name_at(metadata: Metadata, path: str) -> str:
    """The name that the service has there; empty if it has none."""
    text = metadata.read(path).decode("ascii", "replace").strip()
    return text if NAME.fullmatch(text) else ""
