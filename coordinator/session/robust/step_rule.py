"""What a robust session makes of a whole step: which rule each kind of tensor takes, and who was unlike the others."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from edgenewton.secure_aggregation.contribution_form import Totals
from edgenewton.v1.codecs import Float32Array
from edgenewton.v1.framing import SliceKey
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.robust.coordinates import CoordinateMedian
from coordinator.session.robust.rule import RobustRule, Stack
from coordinator.session.robust.statistics import statistic_mean

_LEARNT = ("gradient", "delta")
"""Kinds that the session's rule is for, all tensors of a kind together."""


class Held(NamedTuple):
    """What a device sent of a slice."""

    device: str
    values: npt.NDArray[Any]
    """Float32, or masked integers with secure aggregation."""
    samples: int


@dataclass
class StepOutcome:
    """What the slices of a step became."""

    values: dict[SliceKey, Float32Array] = field(default_factory=dict)
    unlike: dict[str, str] = field(default_factory=dict)
    """For each device that was unlike the others, the first thing that was, as a sentence without its subject."""
    totals: Totals | None = None
    """With secure aggregation: what all contributions say together beside their slices."""
    fault: tuple[str, str] | None = None
    """With secure aggregation: whose fault it is that the sum cannot be unmasked, and why."""


class StepRule:
    """Combines all slices of a step at once.

    Gradients, and moves, of all tensors together take the session's rule. Curvature statistics take the mean of what
    is possible, with bounded traces, without the devices that the rule distrusts. All else, of which an honest device
    sends nearly what the others send (buffers, weights, numbers), takes the median of each element.

    Args:
        make_rule: of the session; called once for each kind.

    """

    def __init__(self, make_rule: Callable[[], RobustRule]) -> None:
        self._make_rule = make_rule
        self._rules: dict[str, RobustRule] = {}
        self.takes_sparse = make_rule().takes_sparse

    def combine(
        self, slices: Mapping[SliceKey, Sequence[Held]], complete: Collection[str], fingerprint: Sequence[TensorSpec]
    ) -> StepOutcome:
        """Return what a step's slices become.

        Args:
            slices: with all that was contributed to them.
            complete: the devices whose contributions are in whole: no others count.
            fingerprint: the session's tensors.

        """
        outcome = StepOutcome()
        keys = sorted(slices)
        distrusted: set[str] = set()
        for kind in _LEARNT:
            of_kind = [key for key in keys if fingerprint[key.tensor].kind == kind]
            stack = _stack(of_kind, slices, complete)
            if stack is None:
                continue
            if kind not in self._rules:
                self._rules[kind] = self._make_rule()
            found = self._rules[kind].combine(stack)
            outcome.values.update(zip(of_kind, found.pieces, strict=True))
            distrusted |= set(found.distrusted)
            for device, reason in found.unlike.items():
                outcome.unlike.setdefault(device, f"its {kind}s: {reason}")
        of_tensors: dict[int, list[SliceKey]] = {}
        for key in keys:
            if fingerprint[key.tensor].kind not in _LEARNT:
                of_tensors.setdefault(key.tensor, []).append(key)
        for tensor, of_tensor in of_tensors.items():
            self._combine_tensor(fingerprint[tensor], of_tensor, slices, complete, distrusted, outcome)
        return outcome

    def _combine_tensor(
        self,
        spec: TensorSpec,
        keys: list[SliceKey],
        slices: Mapping[SliceKey, Sequence[Held]],
        complete: Collection[str],
        distrusted: Collection[str],
        outcome: StepOutcome,
    ) -> None:
        stack = _stack(keys, slices, complete)
        if stack is None:
            return
        if not spec.structure:
            outcome.values.update(zip(keys, CoordinateMedian().combine(stack).pieces, strict=True))
            return
        trusted = _stack(keys, slices, set(complete) - set(distrusted)) or stack
        pieces, unlike = statistic_mean(spec, trusted)
        outcome.values.update(zip(keys, pieces, strict=True))
        for device, reason in unlike.items():
            outcome.unlike.setdefault(device, reason)


def _stack(
    keys: Sequence[SliceKey], slices: Mapping[SliceKey, Sequence[Held]], devices: Collection[str]
) -> Stack | None:
    """Return what devices sent of these slices, of those that sent all of them; None if nobody did."""
    by_device = [{held.device: held for held in slices[key]} for key in keys]
    whole = sorted(set(devices).intersection(*by_device)) if keys else []
    if not whole:
        return None
    samples = [by_device[0][device].samples for device in whole]
    vectors = [[np.asarray(of_slice[device].values) for of_slice in by_device] for device in whole]
    return Stack(whole, samples, vectors)
