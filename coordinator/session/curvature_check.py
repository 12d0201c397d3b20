"""Looks at the diagonals of curvature statistics as they come, before any rule: one impossible slice is dropped.

A mean of squares is never negative, and does not grow without end. What a device sends beyond that weighs nothing, as
if it had skipped its batch, and its name is told; the device and all others go on.
"""

from statistics import median_low

from edgenewton.v1.codecs import Float32Array
from edgenewton.v1.framing import SliceKey
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.diagonals import diagonal_positions

FACTOR = 1_000.0
"""A slice's part of the trace may be so many times the largest median of the session's steps so far. Curvature falls
as a model learns; but a batch that isn't learnt may have ten thousand times as much as those that are."""


class CurvatureCheck:
    """What was seen of the session's curvature so far."""

    def __init__(self) -> None:
        self._largest: dict[SliceKey, float] = {}
        self._seen: dict[SliceKey, list[float]] = {}

    def fault(self, spec: TensorSpec, key: SliceKey, values: Float32Array) -> str:
        """Return what is wrong with a slice, as a sentence; nothing if it can be, or has no structure.

        Args:
            spec: of its tensor.
            key: of the slice.
            values: of it, flat.

        """
        if not spec.structure:
            return ""
        positions = diagonal_positions(spec)
        begin, end = positions.searchsorted((key.offset, key.offset + len(values)))
        diagonal = values[positions[begin:end] - key.offset]
        if not len(diagonal):
            return ""
        if diagonal.min() < 0:
            return f"its {spec} has a negative number on a diagonal, and did not count"
        trace = float(diagonal.sum(dtype="float64"))
        largest = self._largest.get(key)
        if largest is not None and trace > FACTOR * largest > 0:
            return f"its {spec} is {trace / largest:.3g} times as large as is usual, and did not count"
        self._seen.setdefault(key, []).append(trace)
        return ""

    def committed(self) -> None:
        """Take the end of a step in."""
        for key, traces in self._seen.items():
            self._largest[key] = max(self._largest.get(key, 0.0), median_low(traces))
        self._seen = {}
