"""What a scheduler changes, such as a learning rate, is part of a step: it must be the same on all devices."""

import math
from collections.abc import Mapping

from coordinator.session.refusal import invalid

TOLERANCE = 1e-6
"""Relative: machines of different kinds round a scheduler's arithmetic differently."""


def check_hyperparameters(device: str, step: int, given: Mapping[str, float]) -> None:
    """Check that a device's hyperparameters are numbers.

    Raises:
        RefusedError: one is none; the text names it.

    """
    for name, value in given.items():
        if math.isnan(value):  # nothing would be equal to it
            raise invalid(device, step, f"its option {name!r} is no number")


def hyperparameters_difference(ours: Mapping[str, float], theirs: Mapping[str, float], who: str) -> str:
    """Return how a device's hyperparameters differ from those of others, who are named; nothing if they do not.

    The text names one, and both values, and says what to do.
    """
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None or not math.isclose(one, other, rel_tol=TOLERANCE):
            return (
                f"its option {name!r} is {_text(one)} where it is {_text(other)} on {who}; all devices must take the "
                "step alike: give them the same optimizer options, and the same scheduler, stepped as often; "
                "optimizer.follow(scheduler) does so by the session's step, also on a device that came late"
            )
    return ""


def _text(value: float | None) -> str:
    return "not set" if value is None else f"{value:.9g}"
