"""Top-k: only the elements of largest magnitude are sent; error feedback sends the others later.

Stich, Cordonnier & Jaggi 2018, "Sparsified SGD with Memory" (https://arxiv.org/abs/1809.07599). Here k is chosen for
each slice of a tensor, so that slices need not wait for each other.
"""

import math

import numpy as np

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.interface import Codec, Context, Data, Float32Array, Shape
from edgenewton.v1.codecs.plain import WORTH_IT, from_bf16, to_bf16
from edgenewton.v1.tensor_spec import TensorSpec


def kept(fraction: float, shape: Shape) -> int:
    """Return how many elements of an array are `fraction` of them, at least one if there is one."""
    length = math.prod(shape)
    return min(length, max(1, math.ceil(fraction * length)))


class TopK(Codec):
    """Keeps `fraction` of a slice's elements, at least one: 6 bytes each."""

    name = "topk"
    number = pb.CODEC_TOPK
    needs_feedback = True

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction

    def kept(self, shape: Shape) -> int:
        """Return k."""
        return kept(self.fraction, shape)

    def encoded_size(self, shape: Shape) -> int:
        """Return 4 bytes of position and 2 of value for each kept element."""
        return 6 * self.kept(shape)

    def suits(self, spec: TensorSpec) -> bool:
        """Tell whether there are enough elements to leave most of them out."""
        return spec.size >= WORTH_IT

    def encode(self, x: Float32Array, context: Context) -> Data:
        """Return the positions, ascending, then the values in bf16."""
        k = self.kept(context.shape)
        positions = np.arange(k) if k == len(x) else np.sort(np.argpartition(np.abs(x), -k)[-k:])
        return positions.astype("<u4").tobytes() + bytes(to_bf16(x[positions]))

    def decode(self, data: Data, context: Context) -> Float32Array:
        """Return the kept elements, and zeros elsewhere.

        Raises:
            ValueError: the size is wrong, or positions are not ascending and within the slice.

        """
        self.check_size(data, context.shape)
        k = self.kept(context.shape)
        values = np.zeros(math.prod(context.shape), dtype=np.float32)
        if not k:
            return values
        positions = np.frombuffer(data, dtype="<u4", count=k)
        if positions[-1] >= len(values) or (positions[1:] <= positions[:-1]).any():
            raise ValueError(f"the positions of top-k are not ascending numbers below {len(values)}")
        values[positions] = from_bf16(memoryview(data).cast("B")[4 * k :])
        return values
