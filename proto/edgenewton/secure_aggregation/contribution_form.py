"""How each slice of a contribution is written under masks, and the few numbers beside them; alike on both sides."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgenewton.common.evaluation import Evaluation
from edgenewton.secure_aggregation.fixed_point import BLOCK, FixedPoint, Float32Array
from edgenewton.secure_aggregation.messages import scales_from_bytes
from edgenewton.secure_aggregation.modular_integers import bits_for_sum
from edgenewton.v1.framing import Layout, Slice, SliceKey

CURVATURE_BITS = 9
"""Of a device's curvature statistics. More are of no use that could be measured."""
NOISED_BITS = 24
"""Of integers with noise for differential privacy: the largest that float32 has exactly."""
_NUMBERS = 5
NUMBERS_STREAM = 2**64 - 1
"""Of the numbers beside the slices."""


@dataclass(frozen=True)
class ContributionForm:
    """How the slices of a step are written.

    Args:
        layout: of the slices.
        bits: of a device's integers of moves. Gradients have up to twice as many: the scale of all must suit the
            largest, and what is rounded away of a gradient is lost, while of moves it is sent later.
        devices: so many mask.
        scales: of the blocks of the slices that have any.

    """

    layout: Layout
    bits: int
    devices: int
    scales: Mapping[SliceKey, Float32Array]

    def of(self, piece: Slice) -> FixedPoint:
        """Return how a slice is written."""
        if piece.spec.kind == "noised":
            return FixedPoint(NOISED_BITS, self.devices, unit=1.0)
        match piece.spec.kind:
            case "gradient":  # as many as leave it twice the bits in the sum
                bits = max(self.bits, 2 * self.bits - bits_for_sum(0, self.devices))
            case "curvature":
                bits = CURVATURE_BITS
            case _:
                bits = self.bits
        return FixedPoint(bits, self.devices, self.scales.get(piece.key))

    @property
    def numbers(self) -> FixedPoint:
        """How the numbers are written."""
        return FixedPoint(self.bits, self.devices)

    @property
    def numbers_length(self) -> int:
        """How many numbers there are."""
        return _NUMBERS + len(self.layout.fingerprint)


def digest_of_terms(bits: int, least: int, circle: Sequence[str], maskers: bytes, scales: Sequence[bytes]) -> bytes:
    """Return the digest (32 bytes) of what all devices of a step must be told alike: see `StepMasks.take`.

    Args:
        bits: of a device's integers of gradients and moves.
        least: so many must contribute to a sum.
        circle: the devices that may mask.
        maskers: those that do, as `set_to_bytes` writes them.
        scales: of each slice, as `scales_to_bytes` writes them.

    """
    digest = hashlib.sha256(b"edgenewton terms")
    parts = (str(bits).encode(), str(least).encode(), str(len(circle)).encode(), *(name.encode() for name in circle))
    for part in (*parts, maskers, *scales):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def key_hint(public: bytes) -> bytes:
    """Return by what a contribution tells with which of the device's keys it is masked: 8 bytes."""
    return public[:8]


def may_be_rounded(kind: str) -> bool:
    """Tell whether tensors of a kind have scales; the mean of others replaces them, so they are written finely."""
    return kind in ("gradient", "delta", "curvature")


def stream_of(key: SliceKey) -> int:
    """Return the number of a slice's masks."""
    return key.tensor << 40 | key.offset


def all_slices(layout: Layout) -> list[Slice]:
    """Return the slices of all tensors, in their order."""
    return [piece for tensor in range(len(layout.fingerprint)) for piece in layout.slices(tensor)]


def scales_by_slice(layout: Layout, written: Sequence[bytes]) -> dict[SliceKey, Float32Array]:
    """Return the scales that came for each slice.

    Raises:
        ValueError: they are not of just these slices, or impossible.

    """
    slices = all_slices(layout)
    if len(written) != len(slices):
        raise ValueError(f"scales of {len(written)} slices came; the session has {len(slices)}")
    blocks = {piece.key: -(-piece.length // BLOCK) for piece, data in zip(slices, written, strict=True) if data}
    return dict(zip(blocks, scales_from_bytes([data for data in written if data], blocks.values()), strict=True))


@dataclass(frozen=True)
class Totals:
    """The numbers beside the slices: of one device, or summed up over all."""

    samples: int
    loss: float
    """Times the samples."""
    evaluation: Evaluation | None
    clipped: npt.NDArray[np.float64]
    """For each tensor, how many values were too large for their scale."""

    def to_vector(self) -> npt.NDArray[np.float64]:
        """Return them as a vector."""
        of = self.evaluation
        evaluated = (0.0, 0.0, 0.0) if of is None else (of.correct, of.samples, of.samples * of.loss)
        return np.array([self.samples, self.loss, *evaluated, *self.clipped], np.float64)

    @classmethod
    def from_vector(cls, vector: npt.NDArray[np.floating[Any]]) -> "Totals":
        """Return what a vector says."""
        samples, loss, correct, tried, tried_loss = vector[:_NUMBERS]
        count = round(tried)
        evaluation = Evaluation(round(correct), count, tried_loss / count) if count > 0 else None
        return cls(round(samples), loss, evaluation, np.rint(vector[_NUMBERS:]))
