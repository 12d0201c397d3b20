"""Framing: tensors become slices, slices become frames of an agreed size, and back.

A slice never crosses a tensor, and slices of one tensor begin at multiples of `slice_length`. So the slices of all
devices coincide, and each can be added up, weighted and sent back on its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codec import Codec, Float32Array
from edgenewton.v1.fingerprint import DTYPES, TensorSpec


def slice_length(codec: Codec, frame_bytes: int) -> int:
    """Return how many elements a slice of a large tensor has, so that its data fills a frame."""
    return max(1, frame_bytes // codec.encoded_size(1))


def slice_offsets(size: int, length: int) -> range:
    """Return the offsets of the slices of a tensor with `size` elements; an empty tensor has one empty slice."""
    return range(0, max(size, 1), length)


def make_slice(index: int, spec: TensorSpec, codec: Codec, offset: int, values: Float32Array) -> pb.TensorSlice:
    """Return the message for a slice that begins at element `offset` of tensor number `index`."""
    return pb.TensorSlice(
        tensor=index,
        dtype=DTYPES[spec.dtype],
        codec=codec.number,
        shape=spec.shape,
        offset=offset,
        length=len(values),
        data=codec.encode(values),
    )


def make_slices(
    index: int, spec: TensorSpec, codec: Codec, frame_bytes: int, values: Float32Array
) -> Iterator[pb.TensorSlice]:
    """Yield the slices of a whole tensor, given flat in row-major order."""
    length = slice_length(codec, frame_bytes)
    for offset in slice_offsets(spec.size, length):
        yield make_slice(index, spec, codec, offset, values[offset : offset + length])


def read_slice(
    message: pb.TensorSlice, fingerprint: tuple[TensorSpec, ...], codec: Codec, frame_bytes: int
) -> Float32Array:
    """Check a slice against the fingerprint and the agreed settings, and return its elements.

    Raises:
        ValueError: anything about it breaks the contract; the text names the tensor and what was expected.

    """
    if message.tensor >= len(fingerprint):
        raise ValueError(f"tensor {message.tensor} is unknown; the model has {len(fingerprint)} tensors")
    spec = fingerprint[message.tensor]
    if tuple(message.shape) != spec.shape or message.dtype != DTYPES[spec.dtype]:
        raise ValueError(
            f"the {spec} came with shape {list(message.shape)} and dtype number {message.dtype} "
            f"instead of {list(spec.shape)} and {DTYPES[spec.dtype]}"
        )
    if message.codec != codec.number:
        raise ValueError(f"the {spec} came in codec {message.codec}; the session's codec is {codec.name}")
    length = slice_length(codec, frame_bytes)
    expected = min(length, spec.size - message.offset)
    if message.offset not in slice_offsets(spec.size, length) or message.length != expected:
        raise ValueError(
            f"the {spec} came with a slice of {message.length} elements at {message.offset}; "
            f"slices begin at multiples of {length} and end within its {spec.size} elements"
        )
    try:
        values = codec.decode(message.data, message.length)
    except ValueError as error:
        raise ValueError(f"the {spec}: {error}") from None
    if not _all_finite(values):
        raise ValueError(f"the {spec} has a value that is not finite")
    return values


def _all_finite(values: Float32Array) -> bool:
    # One pass without a temporary array decides nearly always: only an infinity, a NaN or an overflow of the
    # sum itself leaves it undecided.
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum(dtype=np.float64)
    return bool(np.isfinite(total)) or bool(np.isfinite(values).all())


@dataclass
class FramePacker:
    """Packs slices of one step into frames of about `frame_bytes`."""

    step: int
    samples: int
    frame_bytes: int
    _frame: pb.Frame = field(init=False)
    _size: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._frame = pb.Frame(step=self.step, samples=self.samples)

    def add(self, piece: pb.TensorSlice) -> pb.Frame | None:
        """Add a slice; return the frame that had to leave to make room for it, if any."""
        full = self.take() if self._size and self._size + len(piece.data) > self.frame_bytes else None
        self._frame.slices.append(piece)
        self._size += len(piece.data)
        return full

    def take(self) -> pb.Frame:
        """Return the frame as it is (perhaps empty) and begin a new one."""
        frame = self._frame
        self._frame = pb.Frame(step=self.step, samples=self.samples)
        self._size = 0
        return frame

    @property
    def is_full(self) -> bool:
        """Whether the frame should leave now."""
        return self._size >= self.frame_bytes
