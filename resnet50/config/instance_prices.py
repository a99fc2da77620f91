"""What EC2 instances with GPUs cost on demand: instance_prices.csv, in dollars an hour.

Linux, us-east-1, out of a snapshot of SkyPilot's price catalog. The day of the snapshot is not
recorded: it is from after AWS's cut of June 2025 (a p5.48xlarge was $98.32 before). `read_on` is
the day on which we read it. For a newer price, change the row, its source, and its day; another
region, spot, or a contract has other prices: give --price_per_hour then.
"""

import csv
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_suffix(".csv")


class Instance(NamedTuple):
    """A type of machine; usd_per_hour: for all its GPUs together."""

    instance: str
    gpus: int
    gpu: str
    vcpus: int
    usd_per_hour: float
    region: str
    read_on: str
    source: str

    @property
    def terms(self) -> str:
        """Which price it is: "on demand in us-east-1, read on 2026-11-29"."""
        return f"on demand in {self.region}, read on {self.read_on}"


def read() -> dict[str, Instance]:
    """Every row of the file, by instance type."""
    with FILE.open(newline="") as file:
        rows = [
            Instance(
                instance=row["instance"],
                gpus=int(row["gpus"]),
                gpu=row["gpu"],
                vcpus=int(row["vcpus"]),
                usd_per_hour=float(row["usd_per_hour"]),
                region=row["region"],
                read_on=row["read_on"],
                source=row["source"],
            )
            for row in csv.DictReader(file)
        ]
    return {row.instance: row for row in rows}


def cheapest_per_gpu() -> dict[str, Instance]:
    """Of each GPU the instance on which one of it costs least."""
    found: dict[str, Instance] = {}
    for row in read().values():
        best = found.get(row.gpu, row)
        found[row.gpu] = min(best, row, key=lambda one: one.usd_per_hour / one.gpus)
    return found
