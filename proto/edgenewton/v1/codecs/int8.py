"""int8 with a scale for each block: a quarter of fp32, whatever the tensor."""

import math

import numpy as np

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.interface import Codec, Context, Data, Float32Array, Shape

BLOCK = 256
"""Elements that share a scale."""


class Int8(Codec):
    """Signed bytes times a binary32 scale per block: error at most 1/254 of the block's largest magnitude."""

    name = "int8"
    number = pb.CODEC_INT8
    is_narrow = True
    is_quantised = True

    def encoded_size(self, shape: Shape) -> int:
        """Return 1 byte for each element and 4 for each block."""
        length = math.prod(shape)
        return length + 4 * -(-length // BLOCK)

    def encode(self, x: Float32Array, context: Context) -> Data:  # noqa: ARG002
        """Return the scales, then the bytes."""
        blocks = np.pad(x, (0, -len(x) % BLOCK)).reshape(-1, BLOCK)
        scales = np.abs(blocks).max(axis=1) / np.float32(127)
        # A block of zeros, or of values so small that their scale is no normal number, is sent as zeros.
        scales[scales < np.finfo(np.float32).tiny] = 0
        safe = np.where(scales > 0, scales, np.float32(1))
        levels = np.rint(blocks / safe[:, None]).astype(np.int8)
        return b"".join((scales.astype("<f4").tobytes(), levels.ravel()[: len(x)].tobytes()))

    def decode(self, data: Data, context: Context) -> Float32Array:
        """Return scale times byte."""
        self.check_size(data, context.shape)
        length = math.prod(context.shape)
        blocks = -(-length // BLOCK)
        scales = np.frombuffer(data, dtype="<f4", count=blocks)
        levels = np.frombuffer(data, dtype=np.int8, offset=4 * blocks).astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # a scale that lies is found by the receiver's check
            whole = length - length % BLOCK
            levels[:whole].reshape(-1, BLOCK)[...] *= scales[: whole // BLOCK, None]
            if whole < length:
                levels[whole:] *= scales[-1]
        return levels
