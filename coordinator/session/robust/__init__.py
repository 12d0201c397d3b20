"""Rules that bound what a few bad devices can do to a step: each sees all contributions to it, and so holds them all.

A new rule is one file and one line in `RULES`. docs/security.md tells what each of them promises.
"""

from collections.abc import Callable, Mapping

from coordinator.session.robust.centred import CentredClipping
from coordinator.session.robust.clipping import ClippedMean
from coordinator.session.robust.coordinates import CoordinateMedian, TrimmedMean
from coordinator.session.robust.history import HistoryMean
from coordinator.session.robust.krum import Krum, MultiKrum
from coordinator.session.robust.rule import Outcome, RobustRule, Stack, tolerated
from coordinator.session.robust.step_rule import StepOutcome, StepRule

RULES: Mapping[str, Callable[[int | None], RobustRule]] = {
    "clip": lambda _: ClippedMean(),
    "median": lambda _: CoordinateMedian(),
    "trimmed-mean": TrimmedMean,
    "krum": Krum,
    "multi-krum": MultiKrum,
    "centred-clip": lambda _: CentredClipping(),
    "history": HistoryMean,
}
"""All rules, by the name that a session chooses them by; each is given how many bad devices it must bear, or None."""

__all__ = ["RULES", "Outcome", "RobustRule", "Stack", "StepOutcome", "StepRule", "tolerated"]
