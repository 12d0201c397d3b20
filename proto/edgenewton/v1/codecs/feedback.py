"""Error feedback: what compression left out of one step is added to the next.

Seide et al. 2014 (1-bit SGD); Karimireddy et al. 2019, "Error Feedback Fixes SignSGD and other Gradient Compression
Schemes" (https://arxiv.org/abs/1901.09847). The sum of what is sent over t steps differs from the sum of what was to
be sent by the one error that is left, whatever t is.
"""

from typing import Any

import numpy as np

from edgenewton.v1.codecs.chain import Chain
from edgenewton.v1.codecs.interface import Codec, Context, Data, Float32Array, Shape, Stage, State
from edgenewton.v1.tensor_spec import TensorSpec


class ErrorFeedback(Codec):
    """Wraps a lossy codec, and is one by the same name.

    The error is what the values lost, as the sender gave them: stages within may change from step to step.

    Args:
        codec: the lossy one.
        stages: what comes before it, within the feedback.

    """

    memory_name = "feedback"
    keeps_errors = True

    def __init__(self, codec: Codec, *stages: Stage[Any, Any]) -> None:
        self.codec = codec
        self.name = codec.name
        self.number = codec.number
        self.is_narrow = codec.is_narrow
        self.is_quantised = codec.is_quantised
        self.error: Float32Array | None = None
        """What is still to be sent; None before the first step."""
        self._tail = Chain(*stages, codec=codec)
        self.takes_whole_tensors = self._tail.takes_whole_tensors
        self._last: tuple[Data, Context] | None = None
        """What was sent last. Its bytes are few; its values would be as large as the error."""

    def encoded_size(self, shape: Shape) -> int:
        """Return what the codec takes: the error costs nothing."""
        return self.codec.encoded_size(shape)

    def smallest_size(self, shape: Shape) -> int:
        """Return what the codec takes at least."""
        return self.codec.smallest_size(shape)

    def suits(self, spec: TensorSpec) -> bool:
        """Tell whether the codec suits a tensor."""
        return self.codec.suits(spec)

    def encode(self, x: Float32Array, context: Context) -> Data:
        """Return the bytes of `x` and the error of the past together."""
        if self.error is not None and self.codec.error_decay != 1:
            self.error *= np.float32(self.codec.error_decay)
        self.keep(x, context)
        wanted = self.error
        assert wanted is not None
        data = self._tail.encode(wanted, context)
        wanted -= self._tail.decode(data, context)
        self._last = data, context
        return data

    def decode(self, data: Data, context: Context) -> Float32Array:
        """Return what the codec reads, behind the stages."""
        return self._tail.decode(data, context)

    def keep(self, x: Float32Array, context: Context) -> None:
        """Send `x` with what is encoded next.

        Raises:
            ValueError: the error is that of a tensor, or a slice, of another size.

        """
        if self.error is None:
            self.error = np.array(x, dtype=np.float32)
            return
        if len(self.error) != len(x):
            raise ValueError(
                f"the {context.spec} has {len(x)} elements here, but the error left of it {len(self.error)}"
            )
        self.error += x

    def take_back(self) -> bool:
        """Send what was encoded last once more, because it did not arrive; once for each `encode`."""
        if self._last is None or self.error is None:
            return False
        data, context = self._last
        self.error += self._tail.decode(data, context)
        self._last = None
        return True

    def state_dict(self) -> State:
        """Return the error, and what the codec and its stages remember."""
        return {} if self.error is None else {"error": self.error.copy(), "tail": self._tail.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Send what another sender had still to send, whatever its codec; of an equal codec, remember what it did."""
        self.error = np.array(state["error"], dtype=np.float32)
        self._last = None
        self._tail.load_what_suits(state["tail"])
