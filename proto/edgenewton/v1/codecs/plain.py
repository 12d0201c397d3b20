"""Codecs that write each element on its own: fp32, fp16, bf16. They remember nothing."""

import math
import threading
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.interface import Data, Float32Array, Shape, check_size

_POSITIVE_INFINITY, _NEGATIVE_INFINITY = 0x7F80, 0xFF80
"""The upper halves of binary32's infinities."""
_memory = threading.local()


class Fp32:
    """IEEE 754 binary32: exact."""

    name = "fp32"
    number = pb.CODEC_FP32
    takes_whole_tensors = False

    def encoded_size(self, shape: Shape) -> int:
        """Return 4 bytes for each element."""
        return 4 * math.prod(shape)

    def encoder(self, shape: Shape) -> Self:  # noqa: ARG002
        """Return the codec itself."""
        return self

    def encode(self, values: Float32Array) -> Data:
        """Return `values` themselves."""
        return np.ascontiguousarray(values, dtype="<f4").data

    def decode(self, data: Data, shape: Shape) -> Float32Array:
        """Return a read-only view of `data`."""
        check_size(self, data, shape)
        return np.frombuffer(data, dtype="<f4")


class Fp16:
    """IEEE 754 binary16: relative error at most 2^-11 for magnitudes from 6.1e-5 to 65504.

    Larger magnitudes are clamped to 65504, so that a finite gradient never arrives as infinity.
    """

    name = "fp16"
    number = pb.CODEC_FP16
    takes_whole_tensors = False
    _MAX = np.float32(65504.0)

    def encoded_size(self, shape: Shape) -> int:
        """Return 2 bytes for each element."""
        return 2 * math.prod(shape)

    def encoder(self, shape: Shape) -> Self:  # noqa: ARG002
        """Return the codec itself."""
        return self

    def encode(self, values: Float32Array) -> Data:
        """Return `values` rounded to binary16."""
        # np.clip would turn infinities into finite numbers, and hide them from the receiver's check.
        clamped = np.where(np.isfinite(values), np.clip(values, -self._MAX, self._MAX), values)
        return clamped.astype("<f2").data

    def decode(self, data: Data, shape: Shape) -> Float32Array:
        """Return the elements as float32."""
        check_size(self, data, shape)
        return np.frombuffer(data, dtype="<f2").astype(np.float32)


class Bf16:
    """The upper half of binary32, rounded to nearest even: relative error at most 2^-8, range of float32."""

    name = "bf16"
    number = pb.CODEC_BF16
    takes_whole_tensors = False
    _LARGEST = np.uint32(0x7F7F)
    _INFINITY = np.uint32(0x7F800000)

    def encoded_size(self, shape: Shape) -> int:
        """Return 2 bytes for each element."""
        return 2 * math.prod(shape)

    def encoder(self, shape: Shape) -> Self:  # noqa: ARG002
        """Return the codec itself."""
        return self

    def encode(self, values: Float32Array) -> Data:
        """Return `values` rounded to bfloat16; finite values stay finite, and others what they are."""
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
        # Adding 0x7FFF plus the lowest kept bit rounds to nearest, ties to even. In place, in memory that is used
        # again: fresh memory costs more than the arithmetic.
        rounded = _scratch(len(bits))
        np.right_shift(bits, np.uint32(16), out=rounded)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        upper = rounded.view("<u2")[1::2].copy()
        if upper.size and (upper.max() >= _NEGATIVE_INFINITY or upper.view("<i2").max() >= _POSITIVE_INFINITY):
            upper = self._keep_specials(bits, upper)
        return upper.data

    def _keep_specials(self, bits: NDArray[np.uint32], upper: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Undo what rounding did to values that are not finite, or became so."""
        magnitude, sign = bits & np.uint32(0x7FFFFFFF), (bits >> np.uint32(16)) & np.uint32(0x8000)
        kept = np.where(magnitude < self._INFINITY, sign | self._LARGEST, bits >> np.uint32(16))
        kept |= np.where(magnitude > self._INFINITY, np.uint32(0x40), np.uint32(0))  # a NaN stays one
        is_special = (magnitude >= self._INFINITY) | ((upper & np.uint16(0x7FFF)) >= _POSITIVE_INFINITY)
        return np.where(is_special, kept, upper).astype("<u2")

    def decode(self, data: Data, shape: Shape) -> Float32Array:
        """Return the elements as float32."""
        check_size(self, data, shape)
        bits = np.frombuffer(data, dtype="<u2").astype(np.uint32)
        bits <<= np.uint32(16)
        return bits.view(np.float32)


def _scratch(length: int) -> NDArray[np.uint32]:
    """Return memory of this thread, whose content is undefined."""
    memory: NDArray[np.uint32] | None = getattr(_memory, "words", None)
    if memory is None or len(memory) < length:
        memory = _memory.words = np.empty(length, dtype="<u4")
    return memory[:length]
