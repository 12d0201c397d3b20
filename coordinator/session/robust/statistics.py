"""The robust mean of a curvature statistic: what is no covariance is left out, no device's trace counts for much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from edgenewton.v1.codecs import Float32Array
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.diagonals import diagonal_positions
from coordinator.session.robust.rule import Stack
from coordinator.session.robust.vectors import Vector, combination

FACTOR = 10.0
"""A trace counts as at most so many times the devices' median: honest ones differ by more where some batches are
learnt already and others are not, and whoever has a small one does no harm."""
_ROUNDING = 1.5
"""By which factor a Frobenius norm may be above the trace, because codecs round."""


@dataclass(frozen=True)
class _Size:
    trace: float
    frobenius: float
    """Of the whole matrices, not of their upper triangles."""
    smallest: float
    """Of the diagonal."""

    @property
    def is_possible(self) -> bool:
        """Whether positive semi-definite matrices may have it: |M| <= tr M."""
        return self.smallest >= 0 and self.frobenius <= _ROUNDING * self.trace


def statistic_mean(spec: TensorSpec, stack: Stack) -> tuple[list[Float32Array], Mapping[str, str]]:
    """Return the pieces of the weighted mean of a statistic that has a structure, and why devices were left out.

    Args:
        spec: of the statistic.
        stack: what devices sent of it, the tensor's elements in their order.

    """
    positions = diagonal_positions(spec)
    sizes = [_size(vector, positions) for vector in stack.vectors]
    possible = np.array([size.is_possible for size in sizes])
    unlike = {
        device: f"its {spec} is no covariance, and did not count"
        for device, is_possible in zip(stack.devices, possible, strict=True)
        if not is_possible
    }
    if not possible.any():
        return [np.zeros(len(piece), np.float32) for piece in stack.vectors[0]], unlike
    traces = np.array([size.trace for size in sizes])
    bound = FACTOR * np.median(traces[possible])
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = np.where(traces > bound, bound / traces, 1.0)
    weights = stack.weights * possible
    return combination(stack.vectors, weights * scales / weights.sum()), unlike


def _size(vector: Vector, positions: np.ndarray[tuple[int], np.dtype[np.int64]]) -> _Size:
    trace, squares, of_diagonal, smallest, begin = 0.0, 0.0, 0.0, np.inf, 0
    for piece in vector:
        here = positions[np.searchsorted(positions, begin) : np.searchsorted(positions, begin + len(piece))]
        diagonal = piece[here - begin].astype(np.float64)
        trace += float(diagonal.sum())
        of_diagonal += float(diagonal @ diagonal)
        squares += _square(piece)
        smallest = min(smallest, float(diagonal.min(initial=np.inf)))
        begin += len(piece)
    return _Size(trace, float(np.sqrt(max(0.0, 2 * squares - of_diagonal))), smallest)


def _square(piece: Float32Array) -> float:
    parts: Sequence[Float32Array] = [piece[begin : begin + 16_384] for begin in range(0, len(piece), 16_384)]
    return sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)
