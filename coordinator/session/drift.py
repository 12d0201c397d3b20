"""Compares the weights of a session's devices by their sketches: rounding is told from what really differs.

Devices apply the same means, but machines of different kinds round differently, so their weights drift apart. In a
group of norm N whose type has the unit roundoff u (2^-24 in float32), storing the weights makes an error of u N at most
in each step. The direction has more: it is the mean times the inverse of a damped curvature, whose condition number
magnifies the rounding of its factors (Higham 2002, "Accuracy and stability of numerical algorithms", section 7.1). The
error stays the same while the inverse does, so that those of k steps add up. They are allowed

    N min(u (FIRST + PER_STEP k), max(LIMIT, 4 u)).

FIRST has the first steps, which are the longest. docs/exchange.md has what was measured. Long before rounding comes to
the limit, all devices take the mean of their weights.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from edgenewton.v1.sketch import Sketch
from numpy.typing import NDArray

from coordinator.session.step import Step

FIRST = 2000.0
"""Unit roundoffs by which groups may differ at once."""
PER_STEP = 100.0
"""Unit roundoffs that each step adds."""
LIMIT = 3e-4
"""Part of a group's norm that is never taken for rounding."""
_WORTH_ALIGNING = 0.25
"""Devices average their weights once one is so far from the others, as a part of what is allowed."""


@dataclass(frozen=True)
class Difference:
    """How the weights of a device differ from those of most."""

    device: str
    group: str
    """Of the parameters that differ most, compared with what is allowed: a layer, or several; empty for all."""
    amount: float
    """Norm of the difference; NaN if there are weights that are not finite, or the model is another one."""
    times_allowed: float
    """The same as a multiple of what rounding explains."""

    def __str__(self) -> str:
        if not self.group:
            return "its layers were not those of most"
        if not math.isfinite(self.amount):
            return f"its {self.group!r} was not finite"
        return (
            f"its {self.group!r} differed from that of most by {self.amount:.2g}, {self.times_allowed:.3g} times what "
            "rounding explains"
        )


class WeightComparison:
    """Looks at the sketches of one step after the other, and says who differs, and when rounding is to be undone.

    Args:
        is_aged: whether the devices have trained before, so that it is not known since when they drift apart.

    """

    def __init__(self, *, is_aged: bool = False) -> None:
        self._steps = math.inf if is_aged else 0.0
        """That the devices have taken since their weights were equal."""
        self._is_aligning = False
        """Whether the step that is on averages the weights."""
        self.reason = ""
        """Why the next step is to average the weights; empty if it is not."""

    def committed(self, step: Step, members: Collection[str]) -> list[Difference]:
        """Take the end of a step, with the sketches that members sent of their weights before it, if any.

        Returns:
            How those differ that are not as most are, by name.

        """
        sketches = {d: c.sketch for d, c in step.contributions.items() if c.sketch is not None and d in members}
        differing, drift = compare(sketches, self._steps)
        self._steps += 1
        if self._is_aligning and not any(contribution.weight for contribution in step.contributions.values()):
            return differing  # there is no mean of weights if all skip their batches: the next step has it
        if self._is_aligning:
            self._steps = 0.0
        self.reason = "" if self._is_aligning or drift.share < _WORTH_ALIGNING else drift.text
        self._is_aligning = bool(self.reason)
        return differing


@dataclass(frozen=True)
class Drift:
    """The farthest that rounding has taken a device."""

    share: float = 0.0
    """As a part of what is allowed."""
    text: str = ""


def compare(sketches: Mapping[str, Sketch], steps: float) -> tuple[list[Difference], Drift]:
    """Return how devices differ from most of them, by name, and the drift of the others.

    Most are the largest set of devices within what is allowed of the first of them; of sets as large, that of the first
    device. All are compared with the median of the set.

    Args:
        sketches: of each device, made with the same seed.
        steps: that the devices have taken since their weights were equal.

    """
    if len(sketches) < 2:
        return [], Drift()
    most = _majority(sketches, steps)
    if not most:  # nobody's weights are finite: nobody has better ones
        return [], Drift()
    center = _median([sketches[device] for device in most])
    differing, drift = [], Drift()
    for device in sorted(sketches):
        sketch = sketches[device]
        if sketch.names != center.names:
            differing.append(Difference(device, "", math.nan, math.inf))
            continue
        amounts, shares = _distances(sketch, center, steps)
        group = int(np.argmax(np.where(np.isnan(shares), np.inf, shares)))
        amount, share = float(amounts[group]), float(shares[group])
        if not share <= 1:
            differing.append(Difference(device, center.names[group], amount, share))
        elif share > drift.share:
            text = f"rounding has moved {center.names[group]!r} of device {device!r} by {amount:.2g}"
            drift = Drift(share, f"{text}, {share:.0%} of what is allowed; the devices' weights are averaged")
    return differing, drift


def are_alike(one: Sketch | None, other: Sketch | None) -> bool:
    """Whether two sketches of the same seed may be those of weights that differ by rounding alone, of any time."""
    if one is None or other is None or one.names != other.names:
        return False
    return bool((_distances(one, other, math.inf)[1] <= 1).all())


def _majority(sketches: Mapping[str, Sketch], steps: float) -> list[str]:
    sets: list[list[str]] = []
    for device in sorted(sketches):
        sketch = sketches[device]
        if not np.isfinite(sketch.projections).all():
            continue
        for devices in sets:
            first = sketches[devices[0]]
            if first.names == sketch.names and (_distances(sketch, first, steps)[1] <= 1).all():
                devices.append(device)
                break
        else:
            sets.append([device])
    return max(sets, key=len, default=[])


def _median(sketches: list[Sketch]) -> Sketch:
    return Sketch(
        sketches[0].names,
        np.median([sketch.projections for sketch in sketches], axis=0),
        np.median([sketch.scales for sketch in sketches], axis=0),
        np.median([sketch.roundoffs for sketch in sketches], axis=0),
    )


def _distances(sketch: Sketch, center: Sketch, steps: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the norm of each group's difference, estimated, and the same as a part of what is allowed."""
    with np.errstate(all="ignore"):  # what is not finite, or impossibly large, is told by the caller
        amounts = np.sqrt(((sketch.projections - center.projections) ** 2).mean(1))
        parts = np.minimum(center.roundoffs * (FIRST + PER_STEP * steps), np.maximum(LIMIT, 4 * center.roundoffs))
        allowed = center.scales * parts
        # Groups of zeros alone: any difference is one.
        shares = np.where(amounts == 0, 0.0, amounts / allowed)
    return amounts, shares
