"""What a stage is: one thing that is done to a tensor, or to a slice of it, on its way to bytes, and undone behind it.

A stage knows shapes and steps, but no network. What it remembers between steps (the error that compression left, a
warm start) belongs to one sender and one slice, and comes into `encode` alone; `decode` remembers nothing and changes
nothing. So all who decode the same bytes get the same values, and may share a stage for it. Plain Python: who has a
stage of his own loads no protobuf.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgenewton.v1.tensor_spec import TensorSpec

Float32Array = NDArray[np.float32]
Shape = tuple[int, ...]
Data = bytes | memoryview
"""Encoded elements."""
State = Mapping[str, Any]
"""What a stage remembers: arrays by name, perhaps nested."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Context(NamedTuple):
    """What a stage may know of the values that it is given. A tuple, because each slice of each step makes one."""

    spec: TensorSpec
    shape: Shape
    """The tensor's, or `(length,)` for a slice of it; the values themselves are flat in row-major order."""
    offset: int = 0
    """The slice's first element in the tensor."""
    step: int = 0


class Stage(ABC, Generic[_In, _Out]):
    """One link of a chain. Most map float32 values to values; the last one, a `Codec`, writes them as bytes."""

    name: str
    memory_name: str = ""
    """What its memory is called among those of a chain; its name, unless others can go on from it."""
    takes_whole_tensors: bool = False
    """Whether it needs a tensor in one piece, and its shape; otherwise tensors are sliced."""

    @abstractmethod
    def encode(self, x: _In, context: Context) -> _Out:
        """Return what `x` becomes on the way out; it may share the memory of `x`, which is not changed."""

    @abstractmethod
    def decode(self, data: _Out, context: Context) -> _In:
        """Return what came, as it was before `encode`, as far as can be; it may share the memory of `data`.

        Raises:
            ValueError: `data` are not what `encode` makes of this shape.

        """

    def state_dict(self) -> State:
        """Return what `encode` remembers, for a sender that is to go on from here."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Remember what another stage of the same kind and shape remembered."""
