"""Masked integers, as a device sends them with secure aggregation; only their sum over the devices can be read."""

import math
from typing import NoReturn

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.interface import Codec, Context, Data, Float32Array, Shape

_MOST_BYTES = 8
"""An element takes at most 64 bits."""


class Masked(Codec):
    """Stands for what `edgenewton.secure_aggregation` writes: how many bits an element has depends on the step."""

    name = "masked"
    number = pb.CODEC_MASKED

    def encoded_size(self, shape: Shape) -> int:
        """Return 8 bytes for each element: the most."""
        return _MOST_BYTES * math.prod(shape)

    def smallest_size(self, shape: Shape) -> int:
        """Return what 3 bits for each element take: those of the sum of two devices' with two bits."""
        return (3 * math.prod(shape) + 7) // 8

    def encode(self, x: Float32Array, context: Context) -> NoReturn:  # noqa: ARG002
        """Nobody writes it by itself: masks belong to a device and a step."""
        raise TypeError(f"the {context.spec} is masked by whoever has the masks, not by a codec")

    def decode(self, data: Data, context: Context) -> NoReturn:  # noqa: ARG002
        """Nobody can read it by itself."""
        raise TypeError(f"the {context.spec} came masked: only the sum over the devices can be read")
