"""Settings as they lie in a run's folder: JSON there and back, and what a resume may change."""

import dataclasses
import json
from collections.abc import Mapping

from config import TrainConfig
from settings import AUTO, shown


def resumed(stored: TrainConfig, settings: Mapping[str, object]) -> TrainConfig:
    """The stored settings of a run with those explicit ones that a resume may change.

    Raises ValueError naming every other explicit setting that differs from the stored one.
    """
    fields = {item.name: item for item in dataclasses.fields(TrainConfig)}
    found = {  # what was found out at the start of the run stands
        name: value
        for name, value in settings.items()
        if not (fields[name].metadata["may_be_auto"] and value == AUTO)
    }
    differing = [
        f"--{name} {shown(value)} (the run has {shown(getattr(stored, name))})"
        for name, value in found.items()
        if not fields[name].metadata["may_change"] and value != getattr(stored, name)
    ]
    if differing:
        raise ValueError(
            f"the run in {stored.run_dir} cannot go on with other settings: "
            f"{', '.join(differing)}. Leave them out to resume it, or give a new --run_dir"
        )
    return dataclasses.replace(stored, **found)


def to_json(config: TrainConfig) -> dict[str, object]:
    """Settings as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(values: Mapping[str, object]) -> TrainConfig:
    """The inverse of `to_json`. Raises ValueError for an unknown setting or a bad value."""
    known = {item.name for item in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown settings {', '.join(unknown)}: written by another version")
    return TrainConfig(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )
