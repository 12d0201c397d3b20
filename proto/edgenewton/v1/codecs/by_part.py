"""A vector of several tensors, each written by a codec of its own: for codecs that need a tensor's shape."""

from collections.abc import Iterator, Sequence

import numpy as np

from edgenewton.v1.codecs.interface import Codec, Context, Data, Float32Array, Shape, State
from edgenewton.v1.tensor_spec import TensorSpec


class ByPart(Codec):
    """What the codecs write, one after the other; each writes a number of bytes that its tensor's shape tells.

    Args:
        codec: whose name and number it has.
        parts: the tensors, with their codecs.

    """

    takes_whole_tensors = True
    error_decay = 1.0

    def __init__(self, codec: Codec, parts: Sequence[tuple[TensorSpec, Codec]]) -> None:
        self.name, self.number = codec.name, codec.number
        self.needs_feedback, self.error_decay = codec.needs_feedback, codec.error_decay
        self._parts = parts

    def encoded_size(self, shape: Shape) -> int:  # noqa: ARG002
        """Return the bytes of all parts."""
        return sum(codec.encoded_size(spec.shape) for spec, codec in self._parts)

    def encode(self, x: Float32Array, context: Context) -> Data:
        """Return the bytes of all parts."""
        pieces = np.split(x, np.cumsum([spec.size for spec, _ in self._parts])[:-1])
        return b"".join(
            bytes(codec.encode(piece, of_part))
            for piece, (codec, of_part) in zip(pieces, self._of_parts(context), strict=True)
        )

    def decode(self, data: Data, context: Context) -> Float32Array:
        """Return the elements of all parts.

        Raises:
            ValueError: the size is wrong, or a part is not what its codec writes.

        """
        self.check_size(data, context.shape)
        view, at, decoded = memoryview(data).cast("B"), 0, []
        for codec, of_part in self._of_parts(context):
            end = at + codec.encoded_size(of_part.shape)
            decoded.append(codec.decode(view[at:end], of_part))
            at = end
        return np.concatenate(decoded)

    def state_dict(self) -> State:
        """Return what the codecs remember."""
        return {str(number): codec.state_dict() for number, (_, codec) in enumerate(self._parts)}

    def load_state_dict(self, state: State) -> None:
        """Remember what others remembered of the same parts."""
        for number, (_, codec) in enumerate(self._parts):
            codec.load_state_dict(state.get(str(number), {}))

    def _of_parts(self, context: Context) -> Iterator[tuple[Codec, Context]]:
        for spec, codec in self._parts:
            yield codec, Context(spec, spec.shape, step=context.step)
