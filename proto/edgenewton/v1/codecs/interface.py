"""What a codec is: a way to write the elements of a tensor, or of a slice of it, as bytes.

A codec knows shapes but no names and no network. What it remembers between steps (the error that compression left,
a warm start) lives in the `Encoder` of one sender and one slice; decoding needs no memory. So all who decode the same
bytes get the same values.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgenewton.v1 import exchange_pb2 as pb

Float32Array = NDArray[np.float32]
Shape = tuple[int, ...]
Data = bytes | memoryview
"""Encoded elements."""


class Encoder(Protocol):
    """Writes one slice, step after step."""

    def encode(self, values: Float32Array) -> Data:
        """Return the bytes of `values`, flat in row-major order; they may share its memory."""


class Codec(Protocol):
    """Writes float32 arrays as bytes and reads them back."""

    @property
    def name(self) -> str:
        """The name that users choose the codec by."""

    @property
    def number(self) -> pb.Codec:
        """The codec's number on the wire."""

    @property
    def takes_whole_tensors(self) -> bool:
        """Whether it needs a tensor in one piece, and its shape; otherwise tensors are sliced."""

    def encoded_size(self, shape: Shape) -> int:
        """Return how many bytes an array of this shape takes; exact."""

    def encoder(self, shape: Shape) -> Encoder:
        """Return what one sender writes one slice with, in all steps."""

    def decode(self, data: Data, shape: Shape) -> Float32Array:
        """Return the elements in `data`, flat; the array may be a read-only view of `data`.

        Raises:
            ValueError: `data` are not what the codec writes for this shape.

        """


def check_size(codec: Codec, data: Data, shape: Shape) -> None:
    """Check that `data` have the size that an array of this shape takes.

    Raises:
        ValueError: they have not.

    """
    expected, actual = codec.encoded_size(shape), memoryview(data).nbytes
    if actual != expected:
        elements = "x".join(map(str, shape)) or "1"
        raise ValueError(f"{elements} elements take {expected} bytes as {codec.name}, but {actual} bytes came")
