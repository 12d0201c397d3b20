"""int8 with a scale for each block: a quarter of fp32, whatever the tensor."""

import math
from typing import Self

import numpy as np

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.interface import Data, Float32Array, Shape, check_size

BLOCK = 256
"""Elements that share a scale."""


class Int8:
    """Signed bytes times a binary32 scale per block: error at most 1/254 of the block's largest magnitude."""

    name = "int8"
    number = pb.CODEC_INT8
    takes_whole_tensors = False

    def encoded_size(self, shape: Shape) -> int:
        """Return 1 byte for each element and 4 for each block."""
        length = math.prod(shape)
        return length + 4 * -(-length // BLOCK)

    def encoder(self, shape: Shape) -> Self:  # noqa: ARG002
        """Return the codec itself: it remembers nothing."""
        return self

    def encode(self, values: Float32Array) -> Data:
        """Return the scales, then the bytes."""
        blocks = np.pad(values, (0, -len(values) % BLOCK)).reshape(-1, BLOCK)
        scales = np.abs(blocks).max(axis=1) / np.float32(127)
        # A block of zeros, or of values so small that their scale is no normal number, is sent as zeros.
        scales[scales < np.finfo(np.float32).tiny] = 0
        safe = np.where(scales > 0, scales, np.float32(1))
        levels = np.rint(blocks / safe[:, None]).astype(np.int8)
        return b"".join((scales.astype("<f4").tobytes(), levels.ravel()[: len(values)].tobytes()))

    def decode(self, data: Data, shape: Shape) -> Float32Array:
        """Return scale times byte."""
        check_size(self, data, shape)
        length = math.prod(shape)
        blocks = -(-length // BLOCK)
        scales = np.frombuffer(data, dtype="<f4", count=blocks)
        levels = np.frombuffer(data, dtype=np.int8, offset=4 * blocks).astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # a scale that lies is found by the receiver's check
            whole = length - length % BLOCK
            levels[:whole].reshape(-1, BLOCK)[...] *= scales[: whole // BLOCK, None]
            if whole < length:
                levels[whole:] *= scales[-1]
        return levels
