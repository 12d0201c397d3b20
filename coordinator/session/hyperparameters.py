"""What a scheduler changes, such as a learning rate, is part of a step: it must be the same on all devices."""

import math
from collections.abc import Mapping

from coordinator.session.refusal import invalid
from coordinator.session.step import Contribution

TOLERANCE = 1e-6
"""Relative: machines of different kinds round a scheduler's arithmetic differently."""


def check_hyperparameters(
    device: str, step: int, given: Mapping[str, float], contributions: Mapping[str, Contribution]
) -> None:
    """Compare a device's hyperparameters with those of the first complete device that told any.

    Raises:
        RefusedError: one differs; the text names it and both values, and says what to do.

    """
    for name, value in given.items():
        if math.isnan(value):  # nothing would be equal to it, of whoever comes next
            raise invalid(device, step, f"its option {name!r} is no number")
    first = next((other for other, contribution in contributions.items() if contribution.hyperparameters), None)
    if first is None or not given:
        return
    expected = contributions[first].hyperparameters
    for name in sorted(expected.keys() | given.keys()):
        ours, theirs = given.get(name), expected.get(name)
        if ours is None or theirs is None or not math.isclose(ours, theirs, rel_tol=TOLERANCE):
            raise invalid(
                device,
                step,
                f"its option {name!r} is {_text(ours)} where it is {_text(theirs)} on device {first!r}; all devices "
                "must take the step alike: give them the same optimizer options, and the same scheduler, stepped as "
                "often; optimizer.follow(scheduler) does so by the session's step, also on a device that came late",
            )


def _text(value: float | None) -> str:
    return "not set" if value is None else f"{value:.9g}"
