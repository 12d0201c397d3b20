"""Codecs that write each element on its own: fp32, fp16, bf16. They remember nothing."""

import math

import numpy as np
from numpy.typing import NDArray

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.interface import Codec, Context, Data, Float32Array, Shape
from edgenewton.v1.codecs.scratch import scratch

WORTH_IT = 1024
"""Gradients of fewer elements cost little in bf16, and lose much in a codec that compresses."""

_POSITIVE_INFINITY, _NEGATIVE_INFINITY = 0x7F80, 0xFF80
"""The upper halves of binary32's infinities."""
_BF16_LARGEST = np.uint32(0x7F7F)
_INFINITY = np.uint32(0x7F800000)
_FP16_LARGEST = np.float32(65504.0)


class Fp32(Codec):
    """IEEE 754 binary32: exact."""

    name = "fp32"
    number = pb.CODEC_FP32
    is_exact = True

    def encoded_size(self, shape: Shape) -> int:
        """Return 4 bytes for each element."""
        return 4 * math.prod(shape)

    def encode(self, x: Float32Array, context: Context) -> Data:  # noqa: ARG002
        """Return the values themselves."""
        return np.ascontiguousarray(x, dtype="<f4").data

    def decode(self, data: Data, context: Context) -> Float32Array:
        """Return a read-only view of `data`."""
        self.check_size(data, context.shape)
        return np.frombuffer(data, dtype="<f4")


class Fp16(Codec):
    """IEEE 754 binary16: relative error at most 2^-11 for magnitudes from 6.1e-5 to 65504.

    Larger magnitudes are clamped to 65504, so that a finite gradient never arrives as infinity.
    """

    name = "fp16"
    number = pb.CODEC_FP16

    def encoded_size(self, shape: Shape) -> int:
        """Return 2 bytes for each element."""
        return 2 * math.prod(shape)

    def encode(self, x: Float32Array, context: Context) -> Data:  # noqa: ARG002
        """Return the values rounded to binary16."""
        # np.clip would turn infinities into finite numbers, and hide them from the receiver's check.
        clamped = np.where(np.isfinite(x), np.clip(x, -_FP16_LARGEST, _FP16_LARGEST), x)
        return clamped.astype("<f2").data

    def decode(self, data: Data, context: Context) -> Float32Array:
        """Return the elements as float32."""
        self.check_size(data, context.shape)
        return np.frombuffer(data, dtype="<f2").astype(np.float32)


class Bf16(Codec):
    """The upper half of binary32, rounded to nearest even: relative error at most 2^-8, range of float32."""

    name = "bf16"
    number = pb.CODEC_BF16

    def encoded_size(self, shape: Shape) -> int:
        """Return 2 bytes for each element."""
        return 2 * math.prod(shape)

    def encode(self, x: Float32Array, context: Context) -> Data:  # noqa: ARG002
        """Return the values rounded to bfloat16; finite values stay finite, and others what they are."""
        return to_bf16(x)

    def decode(self, data: Data, context: Context) -> Float32Array:
        """Return the elements as float32."""
        self.check_size(data, context.shape)
        return from_bf16(data)


def to_bf16(values: Float32Array) -> Data:
    """Return values rounded to bfloat16; finite values stay finite, and others what they are."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    # Adding 0x7FFF plus the lowest kept bit rounds to nearest, ties to even. In place, in memory that is used
    # again: fresh memory costs more than the arithmetic.
    rounded = scratch(len(bits))
    np.right_shift(bits, np.uint32(16), out=rounded)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    upper = rounded.view("<u2")[1::2].copy()
    if upper.size and (upper.max() >= _NEGATIVE_INFINITY or upper.view("<i2").max() >= _POSITIVE_INFINITY):
        upper = _keep_specials(bits, upper)
    return upper.data


def from_bf16(data: Data) -> Float32Array:
    """Return the elements in bfloat16 as float32."""
    bits = np.frombuffer(data, dtype="<u2").astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def _keep_specials(bits: NDArray[np.uint32], upper: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Undo what rounding did to values that are not finite, or became so."""
    magnitude, sign = bits & np.uint32(0x7FFFFFFF), (bits >> np.uint32(16)) & np.uint32(0x8000)
    kept = np.where(magnitude < _INFINITY, sign | _BF16_LARGEST, bits >> np.uint32(16))
    kept |= np.where(magnitude > _INFINITY, np.uint32(0x40), np.uint32(0))  # a NaN stays one
    is_special = (magnitude >= _INFINITY) | ((upper & np.uint16(0x7FFF)) >= _POSITIVE_INFINITY)
    return np.where(is_special, kept, upper).astype("<u2")
