"""Checks of options: what is wrong is said by the option's name, with what was expected."""

import dataclasses
from collections.abc import Collection
from typing import Any

from edgenewton.common.suggestions import suggestion


class OptionError(ValueError):
    """An option has an impossible value; the text names it."""

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(f"{name} is {value!r}; {expected}")
        self.name = name
        self.value = value
        self.expected = expected


def check_number(
    name: str,
    value: float | None,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Check a number; None stands for one that is left to its user, and NaN is never right.

    Raises:
        OptionError: it is outside its range.

    """
    if value is None:
        return
    if at_least is not None and not value >= at_least:
        raise OptionError(name, value, f"it must be at least {at_least:g}")
    if above is not None and not value > above:
        raise OptionError(name, value, f"it must be above {above:g}")
    if below is not None and not value < below:
        raise OptionError(name, value, f"it must be below {below:g}")
    if at_most is not None and not value <= at_most:
        raise OptionError(name, value, f"it must be at most {at_most:g}")


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Check a name.

    Raises:
        OptionError: it is none of those that are known; the text lists them.

    """
    if value not in known:
        raise OptionError(name, value, f"known are {', '.join(known)}{suggestion(value, known)}")


def flatten(**options: object) -> dict[str, object]:
    """Return options one by one: a group, which is a dataclass, gives its fields, and all else is an option itself.

    A group may rename fields in `FLAT_NAMES`, where alone they would not say what they are of:
    `flatten(lr=0.1, curvature=Curvature("eva"))` gives `{"lr": 0.1, "curvature": "eva", "factor_decay": 0.9, ...}`.
    """
    flat: dict[str, object] = {}
    for name, value in options.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            flat |= {flat_name: getattr(value, field) for flat_name, field in flat_names(type(value)).items()}
        else:
            flat[name] = value
    return flat


def flat_names(group: type[Any]) -> dict[str, str]:
    """Return the names by which a group's fields are called outside of it, each with the field's own."""
    renamed = getattr(group, "FLAT_NAMES", {})
    return {renamed.get(field.name, field.name): field.name for field in dataclasses.fields(group)}
