"""Error feedback: what compression left out of one step is added to the next.

Seide et al. 2014 (1-bit SGD); Karimireddy et al. 2019, "Error Feedback Fixes SignSGD and other Gradient Compression
Schemes" (https://arxiv.org/abs/1901.09847). The sum of what is sent over t steps differs from the sum of what was to
be sent by the one error that is left, whatever t is.
"""

import numpy as np

from edgenewton.v1.codecs.interface import Codec, Data, Encoder, Float32Array, Shape


class ErrorFeedback:
    """Wraps the encoder of a lossy codec, for one sender and one slice."""

    def __init__(self, codec: Codec, encoder: Encoder, shape: Shape) -> None:
        self._codec = codec
        self._encoder = encoder
        self._shape = shape
        self.error: Float32Array | None = None
        """What is still to be sent; None before the first step."""

    def encode(self, values: Float32Array) -> Data:
        """Return the bytes of `values` and the error of the past together."""
        wanted = values if self.error is None else values + self.error
        data = self._encoder.encode(wanted)
        self.error = np.subtract(wanted, self._codec.decode(data, self._shape))
        return data
