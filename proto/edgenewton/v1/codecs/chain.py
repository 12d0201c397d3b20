"""A chain: the stages of one tensor in their order, as if they were one."""

from collections.abc import Mapping
from typing import Any

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.interface import Codec, Context, Data, Float32Array, Shape, Stage, State


class Chain:
    """Stages from values to values (to whatever the next one takes), and at its end the codec that writes bytes.

    Whoever decodes may share one; a sender has its own for each slice, because of what stages remember.

    Args:
        stages: in their order.
        codec: the last one.
        is_whole: whether its tensor is not sliced, even if no stage needs that.

    """

    def __init__(self, *stages: Stage[Any, Any], codec: Codec, is_whole: bool = False) -> None:
        self.codec = codec
        self.is_whole = is_whole
        self._stages: tuple[Stage[Any, Any], ...] = (*stages, codec)
        self._reversed = self._stages[::-1]

    @property
    def name(self) -> str:
        """The codec's name."""
        return self.codec.name

    @property
    def number(self) -> pb.Codec:
        """The codec's number on the wire."""
        return self.codec.number

    @property
    def takes_whole_tensors(self) -> bool:
        """Whether it is given the tensor in one piece."""
        return self.is_whole or any(stage.takes_whole_tensors for stage in self._stages)

    def encoded_size(self, shape: Shape) -> int:
        """Return how many bytes an array of this shape takes; the most, if that depends on the values."""
        return self.codec.encoded_size(shape)

    def encode(self, values: Float32Array, context: Context) -> Data:
        """Return the bytes of `values`, flat in row-major order; they may share its memory."""
        x: Any = values
        for stage in self._stages:
            x = stage.encode(x, context)
        data: Data = x
        return data

    def decode(self, data: Data, context: Context) -> Float32Array:
        """Return the elements in `data`, flat; the array may be a read-only view of `data`.

        Raises:
            ValueError: `data` are not what the chain writes for this shape.

        """
        x: Any = data
        for stage in self._reversed:
            x = stage.decode(x, context)
        values: Float32Array = x
        return values

    def keep(self, values: Float32Array, context: Context) -> bool:
        """Add `values` to what is still to be sent; return whether there is a feedback that can."""
        if not self.codec.keeps_errors:
            return False
        x: Any = values
        for stage in self._stages[:-1]:
            x = stage.encode(x, context)
        self.codec.keep(x, context)
        return True

    def take_back(self) -> bool:
        """Add what was encoded last to what is still to be sent, once; return whether that could be."""
        return self.codec.take_back()

    def state_dict(self) -> State:
        """Return what the stages remember, by their names; those that remember nothing are left out."""
        states = {_memory_name(stage): stage.state_dict() for stage in self._stages}
        return {name: state for name, state in states.items() if state}

    def load_what_suits(self, state: State) -> None:
        """Remember what stages of the same names remembered; what others did is dropped."""
        known = {_memory_name(stage) for stage in self._stages}
        self.load_state_dict({name: remembered for name, remembered in state.items() if name in known})

    def load_state_dict(self, state: State) -> None:
        """Remember what the same chain of another process remembered.

        Raises:
            ValueError: the state is of a chain of other stages.

        """
        stages: Mapping[str, Stage[Any, Any]] = {_memory_name(stage): stage for stage in self._stages}
        unknown = state.keys() - stages.keys()
        if unknown:
            raise ValueError(f"a state of {', '.join(sorted(unknown))} cannot go on as {self.name}")
        for name, remembered in state.items():
            stages[name].load_state_dict(remembered)


def _memory_name(stage: Stage[Any, Any]) -> str:
    return stage.memory_name or stage.name
