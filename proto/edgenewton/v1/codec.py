"""Tensor codecs: how the elements of a tensor are written on the wire.

A codec maps a flat float32 array to bytes and back; it knows nothing of tensors' names or shapes. A new codec is
one class here and one number in `exchange.proto`.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgenewton.v1 import exchange_pb2 as pb

Float32Array = NDArray[np.float32]


class Codec(Protocol):
    """Writes flat float32 arrays as bytes."""

    @property
    def name(self) -> str:
        """The name that users choose the codec by."""

    @property
    def number(self) -> pb.Codec:
        """The codec's number on the wire."""

    def encoded_size(self, length: int) -> int:
        """Return how many bytes `length` elements take."""

    def encode(self, values: Float32Array) -> bytes:
        """Return the bytes of `values`, a contiguous one-dimensional array."""

    def decode(self, data: bytes, length: int) -> Float32Array:
        """Return the `length` elements written in `data`; the array may be a read-only view of `data`.

        Raises:
            ValueError: `data` has not the size that `length` elements take.

        """


class Fp32:
    """IEEE 754 binary32: exact."""

    name = "fp32"
    number = pb.CODEC_FP32

    def encoded_size(self, length: int) -> int:
        """Return 4 bytes for each element."""
        return 4 * length

    def encode(self, values: Float32Array) -> bytes:
        """Return the bytes of `values`, unchanged."""
        return values.astype("<f4", copy=False).tobytes()

    def decode(self, data: bytes, length: int) -> Float32Array:
        """Return a read-only view of `data`."""
        _check_size(self, data, length)
        return np.frombuffer(data, dtype="<f4")


class Fp16:
    """IEEE 754 binary16: relative error at most 2^-11 for magnitudes from 6.1e-5 to 65504.

    Larger magnitudes are clamped to 65504, so that a finite gradient never arrives as infinity.
    """

    name = "fp16"
    number = pb.CODEC_FP16
    _MAX = np.float32(65504.0)

    def encoded_size(self, length: int) -> int:
        """Return 2 bytes for each element."""
        return 2 * length

    def encode(self, values: Float32Array) -> bytes:
        """Return `values` rounded to binary16."""
        # np.clip would turn infinities into finite numbers, and hide them from the receiver's check.
        clamped = np.where(np.isfinite(values), np.clip(values, -self._MAX, self._MAX), values)
        return clamped.astype("<f2").tobytes()

    def decode(self, data: bytes, length: int) -> Float32Array:
        """Return the elements as float32."""
        _check_size(self, data, length)
        return np.frombuffer(data, dtype="<f2").astype(np.float32)


class Bf16:
    """The upper half of binary32, rounded to nearest even: relative error at most 2^-8, range of float32."""

    name = "bf16"
    number = pb.CODEC_BF16
    _MAX = np.float32(3.3895313892515355e38)

    def encoded_size(self, length: int) -> int:
        """Return 2 bytes for each element."""
        return 2 * length

    def encode(self, values: Float32Array) -> bytes:
        """Return `values` rounded to bfloat16; finite values stay finite."""
        finite = np.isfinite(values)
        clamped = np.where(finite, np.clip(values, -self._MAX, self._MAX), values)
        bits = np.ascontiguousarray(clamped, dtype="<f4").view("<u4")
        # Adding 0x7FFF plus the lowest kept bit rounds to nearest, ties to even; a NaN or an infinity must not carry.
        rounding = np.where(finite, np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)), np.uint32(0))
        quiet_nan = np.where(np.isnan(values), np.uint32(0x400000), np.uint32(0))
        return (((bits + rounding) | quiet_nan) >> np.uint32(16)).astype("<u2").tobytes()

    def decode(self, data: bytes, length: int) -> Float32Array:
        """Return the elements as float32."""
        _check_size(self, data, length)
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Fp32(), Fp16(), Bf16())}
"""All codecs, by the name that users choose them by."""

_BY_NUMBER = {codec.number: codec for codec in CODECS.values()}


def codec_by_number(number: int) -> Codec:
    """Return the codec with a wire number.

    Raises:
        ValueError: no codec has this number.

    """
    for known, codec in _BY_NUMBER.items():
        if known == number:
            return codec
    raise ValueError(f"unknown codec {number}; known are {', '.join(CODECS)}")


def _check_size(codec: Codec, data: bytes, length: int) -> None:
    expected = codec.encoded_size(length)
    if len(data) != expected:
        raise ValueError(f"{length} elements take {expected} bytes as {codec.name}, but {len(data)} bytes came")
