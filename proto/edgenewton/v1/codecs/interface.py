"""What a stage is: one thing that is done to a tensor, or to a slice of it, on its way to bytes, and undone behind it.

A stage knows shapes and steps, but no network. What it remembers between steps (the error that compression left, a
warm start) belongs to one sender and one slice, and comes into `encode` alone; `decode` remembers nothing and changes
nothing. So all who decode the same bytes get the same values, and may share a stage for it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgenewton.v1 import exchange_pb2 as pb
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


class Codec(Stage[Float32Array, Data]):
    """The last stage of a chain: writes float32 values as bytes and reads them back."""

    number: pb.Codec
    """The codec's number on the wire."""
    is_exact: bool = False
    """Whether what is read is bit for bit what was written."""
    is_narrow: bool = False
    """Whether an element takes a byte or less: who chooses it wants curvature to take few bytes, too."""
    is_quantised: bool = False
    """Whether elements share a scale with their block: a slice's end may then lie within a block."""
    needs_feedback: bool = False
    """Whether it leaves out so much that only error feedback makes it useful."""
    error_decay: float = 1.0
    """What part of the error feedback lets live to the next step: what waits for long is no more of use."""
    keeps_errors: bool = False
    """Whether it is such feedback: whether `keep` and `take_back` do anything."""

    @abstractmethod
    def encoded_size(self, shape: Shape) -> int:
        """Return how many bytes an array of this shape takes; the most, if that depends on the values."""

    def smallest_size(self, shape: Shape) -> int:
        """Return the fewest bytes that an array of this shape takes."""
        return self.encoded_size(shape)

    def suits(self, spec: TensorSpec) -> bool:  # noqa: ARG002
        """Tell whether a tensor is worth it: one of which others would make less, or lose less, is not."""
        return True

    def check_size(self, data: Data, shape: Shape) -> None:
        """Check that `data` have a size that an array of this shape may take.

        Raises:
            ValueError: they have not.

        """
        smallest, largest, actual = self.smallest_size(shape), self.encoded_size(shape), memoryview(data).nbytes
        if not smallest <= actual <= largest:
            elements = "x".join(map(str, shape)) or "1"
            expected = f"{smallest} to {largest}" if smallest < largest else f"{largest}"
            raise ValueError(f"{elements} elements take {expected} bytes as {self.name}, but {actual} bytes came")

    def keep(self, x: Float32Array, context: Context) -> None:  # noqa: ARG002
        """Send `x` with what is encoded next; only for a codec that `keeps_errors`."""
        raise TypeError(f"{self.name} keeps nothing for later")

    def take_back(self) -> bool:
        """Send what was encoded last once more, because it did not arrive; return whether that can be."""
        return False
