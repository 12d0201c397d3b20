"""Error feedback: what compression left out of one step is added to the next.

Seide et al. 2014 (1-bit SGD); Karimireddy et al. 2019, "Error Feedback Fixes SignSGD and other Gradient Compression
Schemes" (https://arxiv.org/abs/1901.09847). The sum of what is sent over t steps differs from the sum of what was to
be sent by the one error that is left, whatever t is.
"""

import numpy as np

from edgenewton.v1.codecs.interface import Codec, Context, Data, Float32Array, Shape, State
from edgenewton.v1.tensor_spec import TensorSpec


class ErrorFeedback(Codec):
    """Wraps a lossy codec, and is one by the same name."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.name = codec.name
        self.number = codec.number
        self.takes_whole_tensors = codec.takes_whole_tensors
        self.error: Float32Array | None = None
        """What is still to be sent; None before the first step."""

    def encoded_size(self, shape: Shape) -> int:
        """Return what the codec takes: the error costs nothing."""
        return self.codec.encoded_size(shape)

    def suits(self, spec: TensorSpec) -> bool:
        """Tell whether the codec suits a tensor."""
        return self.codec.suits(spec)

    def encode(self, x: Float32Array, context: Context) -> Data:
        """Return the bytes of `x` and the error of the past together."""
        wanted = x if self.error is None else x + self.error
        data = self.codec.encode(wanted, context)
        self.error = np.subtract(wanted, self.codec.decode(data, context))
        return data

    def decode(self, data: Data, context: Context) -> Float32Array:
        """Return what the codec reads."""
        return self.codec.decode(data, context)

    def state_dict(self) -> State:
        """Return the error, and what the codec remembers."""
        return {} if self.error is None else {"error": self.error, "codec": self.codec.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Send what another sender had still to send."""
        self.error = np.array(state["error"], dtype=np.float32)
        self.codec.load_state_dict(state["codec"])
