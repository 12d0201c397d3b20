"""The elements of largest magnitude, as in top-k, at a fraction of its bytes: coded gaps and few levels.

Sattler et al. 2019, "Sparse Binary Compression" (https://arxiv.org/abs/1805.08768), codes the gaps, too, and of the
values only their mean magnitude, but those of one sign alone. Sizes depend on the values: what the layout knows of them
is their largest.
"""

import math

import numpy as np

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import rice
from edgenewton.v1.codecs.int4 import Int4
from edgenewton.v1.codecs.interface import Codec, Context, Data, Float32Array, Shape
from edgenewton.v1.codecs.plain import WORTH_IT, from_bf16, to_bf16
from edgenewton.v1.codecs.ternary import Ternary
from edgenewton.v1.codecs.topk import kept
from edgenewton.v1.tensor_spec import TensorSpec


class Sparse(Codec):
    """Keeps `fraction` of the elements, at least one: their values as another codec writes them, then the gaps."""

    is_narrow = True
    is_quantised = True
    needs_feedback = True
    # With local steps of second order, 0.6 to 0.8 take the fewest bytes to a target; 0.3, and 0.95 and more, take more.
    # SparseLoCo (Sarfi et al. 2025, https://arxiv.org/abs/2508.15706) has 0.95, with steps of first order.
    error_decay = 0.7
    values: Codec

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction

    def kept(self, shape: Shape) -> int:
        """Return k."""
        return kept(self.fraction, shape)

    def encoded_size(self, shape: Shape) -> int:
        """Return the bytes of the values, and the most that their positions take."""
        k = self.kept(shape)
        return self.values.encoded_size((k,)) + rice.largest_size(k, math.prod(shape))

    def smallest_size(self, shape: Shape) -> int:
        """Return the bytes of the values, and the fewest that their positions take."""
        k = self.kept(shape)
        return self.values.encoded_size((k,)) + rice.smallest_size(k, math.prod(shape))

    def suits(self, spec: TensorSpec) -> bool:
        """Tell whether there are enough elements to leave most of them out."""
        return spec.size >= WORTH_IT

    def encode(self, x: Float32Array, context: Context) -> Data:
        """Return the values in the order of their positions, then the positions."""
        positions = _largest(x, self.kept(context.shape))
        values = self.values.encode(x[positions], context._replace(shape=positions.shape))
        return bytes(values) + rice.write(positions, len(x))

    def decode(self, data: Data, context: Context) -> Float32Array:
        """Return the kept elements, and zeros elsewhere.

        Raises:
            ValueError: the size is wrong, a level does not exist, or positions are not so many within the tensor.

        """
        self.check_size(data, context.shape)
        k, length = self.kept(context.shape), math.prod(context.shape)
        view = memoryview(data).cast("B")
        size = self.values.encoded_size((k,))
        try:
            positions = rice.read(np.frombuffer(view[size:], dtype=np.uint8), k, length)
        except ValueError as error:
            raise ValueError(f"the positions of {self.name} are wrong: {error}") from None
        values = np.zeros(length, dtype=np.float32)
        values[positions] = self.values.decode(view[:size], context._replace(shape=(k,)))
        return values


class Sparse4(Sparse):
    """With the levels of int4."""

    name = "sparse4"
    number = pb.CODEC_SPARSE_INT4
    values = Int4()


class Sparse2(Sparse):
    """With the levels of ternary."""

    name = "sparse2"
    number = pb.CODEC_SPARSE_TERNARY
    values = Ternary()


class _Signs(Codec):
    """A bit for each element, and the mean magnitude of all in bf16, as in Sattler et al. 2019.

    That of each block would give the largest elements, which are often together, more than their share: with it local
    steps took a fifth more bytes.
    """

    name = "signs"
    number = pb.CODEC_SPARSE_SIGN

    def encoded_size(self, shape: Shape) -> int:
        """Return 2 bytes, and one for eight signs."""
        return 2 + -(-math.prod(shape) // 8)

    def encode(self, x: Float32Array, context: Context) -> Data:  # noqa: ARG002
        """Return the magnitude, then the signs."""
        with np.errstate(invalid="ignore"):  # of what is not finite
            mean = np.abs(x).sum(dtype=np.float64) / max(len(x), 1)
        return bytes(to_bf16(np.array([mean], np.float32))) + np.packbits(x < 0, bitorder="little").tobytes()

    def decode(self, data: Data, context: Context) -> Float32Array:
        """Return plus or minus the magnitude.

        Raises:
            ValueError: the size is wrong.

        """
        self.check_size(data, context.shape)
        view = memoryview(data).cast("B")
        negative = np.unpackbits(np.frombuffer(view[2:], np.uint8), count=math.prod(context.shape), bitorder="little")
        mean = from_bf16(view[:2])
        values: Float32Array = np.where(negative, -mean, mean)
        return values


class Sparse1(Sparse):
    """With their signs, and one magnitude."""

    name = "sparse1"
    number = pb.CODEC_SPARSE_SIGN
    values = _Signs()


def _largest(x: Float32Array, k: int) -> rice.Positions:
    """Return the positions of the k largest magnitudes, ascending; of equal ones, the first."""
    if k == len(x):
        return np.arange(k)
    size = np.abs(x)
    threshold = np.partition(size, -k)[-k]
    if not np.isfinite(threshold):
        return np.sort(np.argpartition(size, -k)[-k:])  # NaN counts as the largest of all
    positions = np.flatnonzero(~(size < threshold))
    excess = len(positions) - k
    if excess:
        equal = np.flatnonzero(size[positions] == threshold)
        positions = np.delete(positions, equal[-excess:])
    return positions
