"""What a codec is: the stage at the end of a chain."""

from abc import abstractmethod

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.stage import Context, Data, Float32Array, Shape, Stage, State
from edgenewton.v1.tensor_spec import TensorSpec

__all__ = ["Codec", "Context", "Data", "Float32Array", "Shape", "Stage", "State"]


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
    keeps_errors: bool = False
    """Whether it is such feedback: whether `keep` and `take_back` do anything."""

    @property
    def error_decay(self) -> float:
        """What part of the error feedback lets live to the next step: what waits for long is no more of use."""
        return 1.0

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
