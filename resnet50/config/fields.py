"""What a setting is: a dataclass field with help, bounds, and whether a resume may change it."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import field
from typing import Literal

AUTO: Literal["auto"] = (
    "auto"  # a setting that is determined when the run starts, and recorded then
)


def setting(
    default: object,
    text: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
    may_be_auto: bool = False,
    may_change: bool = False,
) -> object:
    """A dataclass field with its help text, its bounds, and whether a resume may change it."""
    rules = {"at_least": at_least, "at_most": at_most, "above": above, "choices": tuple(choices)}
    rules |= {"may_be_auto": may_be_auto, "may_change": may_change}
    return field(default=default, metadata={"text": text, **rules})


def shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_value(item: dataclasses.Field, value: object) -> None:
    """Raise ValueError if `value` has the wrong type or lies outside the field's bounds."""
    rules = item.metadata
    if rules["may_be_auto"] and value == AUTO:
        return
    wanted = type(item.default)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise ValueError(f"--{item.name} {value!r}: must be of type {wanted.__name__}")
    if rules["choices"] and value not in rules["choices"]:
        raise ValueError(f"--{item.name} {value}: choose from {', '.join(rules['choices'])}")
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        if isinstance(number, float) and math.isinf(number):
            raise ValueError(f"--{item.name} {shown(value)}: must be finite")
        if rules["at_least"] is not None and not number >= rules["at_least"]:
            raise ValueError(f"--{item.name} {shown(value)}: must be at least {rules['at_least']}")
        if rules["at_most"] is not None and not number <= rules["at_most"]:
            raise ValueError(f"--{item.name} {shown(value)}: must be at most {rules['at_most']}")
        if rules["above"] is not None and not number > rules["above"]:
            raise ValueError(f"--{item.name} {shown(value)}: must be above {rules['above']}")
