"""Top-k: only the elements of largest magnitude are sent; error feedback sends the others later.

Stich, Cordonnier & Jaggi 2018, "Sparsified SGD with Memory" (https://arxiv.org/abs/1809.07599). Here k is chosen for
each slice of a tensor, so that slices need not wait for each other.
"""

import math

import numpy as np

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.feedback import ErrorFeedback
from edgenewton.v1.codecs.interface import Data, Float32Array, Shape, check_size
from edgenewton.v1.codecs.plain import Bf16

_BF16 = Bf16()


class TopK:
    """Keeps `fraction` of a slice's elements, at least one: 6 bytes each."""

    name = "topk"
    number = pb.CODEC_TOPK
    takes_whole_tensors = False

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction

    def kept(self, shape: Shape) -> int:
        """Return k."""
        length = math.prod(shape)
        return min(length, max(1, math.ceil(self.fraction * length)))

    def encoded_size(self, shape: Shape) -> int:
        """Return 4 bytes of position and 2 of value for each kept element."""
        return 6 * self.kept(shape)

    def encoder(self, shape: Shape) -> ErrorFeedback:
        """Return an encoder with error feedback."""
        return ErrorFeedback(self, _Selection(self.kept(shape)), shape)

    def decode(self, data: Data, shape: Shape) -> Float32Array:
        """Return the kept elements, and zeros elsewhere.

        Raises:
            ValueError: the size is wrong, or positions are not ascending and within the slice.

        """
        check_size(self, data, shape)
        k = self.kept(shape)
        values = np.zeros(math.prod(shape), dtype=np.float32)
        if not k:
            return values
        positions = np.frombuffer(data, dtype="<u4", count=k)
        if positions[-1] >= len(values) or (positions[1:] <= positions[:-1]).any():
            raise ValueError(f"the positions of top-k are not ascending numbers below {len(values)}")
        values[positions] = _BF16.decode(memoryview(data).cast("B")[4 * k :], (k,))
        return values


class _Selection:
    def __init__(self, k: int) -> None:
        self._k = k

    def encode(self, values: Float32Array) -> Data:
        if self._k == len(values):
            positions = np.arange(self._k)
        else:
            positions = np.sort(np.argpartition(np.abs(values), -self._k)[-self._k :])
        return positions.astype("<u4").tobytes() + bytes(_BF16.encode(values[positions]))
