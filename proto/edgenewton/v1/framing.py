"""Framing: tensors become slices, slices become frames of an agreed size, and back, with as few copies as possible.

A slice never crosses a tensor, and the slices of a tensor follow from its spec and the session's settings alone. So
the slices of all devices coincide, and each can be added up, weighted and sent back on its own. On the wire a frame is
an ordinary protobuf message (`Frame`); but its large field, the slices' data, is written and read here without a copy
into protobuf's own memory.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from edgenewton.v1 import MAX_MESSAGE_BYTES
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import Chain, Context, Data, Float32Array, Policy, Shape, State
from edgenewton.v1.fingerprint import DTYPES
from edgenewton.v1.forms import Form
from edgenewton.v1.limits import Limits
from edgenewton.v1.tensor_spec import TensorSpec
from edgenewton.v1.wire import LEN, WireError, read_frame, read_varint, split, write_field

MAX_MAGNITUDE = 1e25
"""Largest magnitude of an element: the sum over 10,000 devices with a million samples each still is a float32."""
_SEVERAL = 1_024
"""Elements; of fewer it says little how many bytes they take."""
MAX_HEADER_BYTES = 512
"""Of a slice without its data."""

_SLICES = pb.Frame.DESCRIPTOR.fields_by_name["slices"].number
_DATA = pb.TensorSlice.DESCRIPTOR.fields_by_name["data"].number

_DATA_TAG = _DATA << 3 | LEN

SENT_FRAME = Limits(pb.Frame, without=("slices",))
"""Of a frame that a device sends, without its slices: these are checked against the session's."""


class SliceKey(NamedTuple):
    """Identifies a slice: number of the tensor in the fingerprint, first element in row-major order."""

    tensor: int
    offset: int


@dataclass(frozen=True, eq=False)
class Slice:
    """A part of a tensor that is coded, sent and averaged on its own."""

    key: SliceKey
    spec: TensorSpec
    chain: Chain
    """What it is read with, by whoever shares the layout."""
    shape: Shape
    """What the chain is given: the tensor's shape, or `(length,)`."""

    @property
    def length(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @cached_property
    def header(self) -> bytes:
        """The `TensorSlice` without its data, as bytes."""
        return pb.TensorSlice(
            tensor=self.key.tensor,
            dtype=DTYPES[self.spec.dtype],
            codec=self.chain.number,
            shape=self.spec.shape,
            offset=self.key.offset,
            length=self.length,
        ).SerializeToString()

    def context(self, step: int) -> Context:
        """Return what the chain's stages may know of the slice in a step."""
        return Context(self.spec, self.shape, self.key.offset, step)

    def decode(self, data: Data, step: int) -> Float32Array:
        """Return the elements, flat; whoever does not trust the sender checks the values too.

        Raises:
            ValueError: the data are not what the chain writes.

        """
        try:
            return self.chain.decode(data, self.context(step))
        except ValueError as error:
            raise ValueError(f"the {self.spec}: {error}") from None


def check_values(spec: TensorSpec, values: Float32Array) -> None:
    """Check that all values are finite and within `MAX_MAGNITUDE`.

    Raises:
        ValueError: one is not; the text names the tensor.

    """
    # Minimum and maximum propagate NaN, which compares false; they need no temporary array.
    if values.size and not (values.min() >= -MAX_MAGNITUDE and values.max() <= MAX_MAGNITUDE):
        what = f"beyond ±{MAX_MAGNITUDE:g}" if np.isfinite(values).all() else "that is not finite"
        raise ValueError(f"the {spec} has a value {what}")


class Layout:
    """The slices of all tensors of a session."""

    def __init__(self, fingerprint: tuple[TensorSpec, ...], policy: Policy, frame_bytes: int) -> None:
        self.fingerprint = fingerprint
        self.policy = policy
        self.frame_bytes = frame_bytes
        self.slice_length = max(1, frame_bytes // 4)
        self._chains = [policy.chain_for(spec) for spec in fingerprint]
        self._slices: dict[int, list[Slice]] = {}
        self._known: dict[bytes, Slice] = {}
        self._known_sizes: tuple[int, ...] = ()
        """Of the known headers, in bytes."""

    def slices(self, tensor: int) -> list[Slice]:
        """Return the slices of one tensor, in order; an empty tensor has one empty slice."""
        if tensor not in self._slices:
            spec, chain = self.fingerprint[tensor], self._chains[tensor]
            if chain.takes_whole_tensors:
                slices = [Slice(SliceKey(tensor, 0), spec, chain, spec.shape)]
            else:
                slices = [
                    Slice(SliceKey(tensor, begin), spec, chain, (min(self.slice_length, spec.size - begin),))
                    for begin in range(0, max(spec.size, 1), self.slice_length)
                ]
            self._slices[tensor] = slices
        return self._slices[tensor]

    def slice_of(self, key: SliceKey) -> Slice:
        """Return the slice with a key that the layout gave.

        Raises:
            ValueError: another layout gave it.

        """
        number, rest = divmod(key.offset, self.slice_length)
        if key.tensor >= len(self.fingerprint) or rest or number >= len(self.slices(key.tensor)):
            raise ValueError(f"the session has no slice of tensor {key.tensor} at {key.offset}")
        return self.slices(key.tensor)[number]

    def find(self, header: bytes) -> Slice:
        """Return the slice with a header, as it came from the wire.

        Raises:
            ValueError: no slice of the session has it; the text names the tensor and what was expected.

        """
        known = self._known.get(header)
        if known is None:
            try:
                known = self._check(pb.TensorSlice.FromString(header))
            except DecodeError:
                raise ValueError("a slice's header is no valid protobuf message") from None
            # One header can be written in many ways. Of each slice one is known, and no other taken.
            if header != known.header:
                raise ValueError(f"the {known.spec} came with a header that is not written as protobuf writes it")
            self._known[header] = known
            self._known_sizes = tuple({*self._known_sizes, len(header)})
        return known

    def read(self, data: bytes, begin: int, end: int) -> "tuple[Slice, memoryview]":
        """Return the slice that is written between two positions of a frame, and its data as a view.

        Raises:
            ValueError: no slice of the session has its header; the text names the tensor and what was expected.

        """
        # As it is written here: a header that is known, and then the data to the end. It takes no look at the fields.
        for size in self._known_sizes:
            at = begin + size
            if at < end and data[at] == _DATA_TAG and (known := self._known.get(data[begin:at])) is not None:
                length, start = read_varint(data, at + 1, end)
                if start + length == end:
                    return known, memoryview(data)[start:end]
        header, payload = split(data, begin, end, _DATA, header_bytes=MAX_HEADER_BYTES)
        return self.find(header), payload

    @cached_property
    def density(self) -> float:
        """The most elements that a byte of a slice can stand for."""
        chains = zip(self.fingerprint, self._chains, strict=True)
        sizes = [(spec.size, chain.codec.smallest_size(spec.shape)) for spec, chain in chains]
        return max((size / max(1, least) for size, least in sizes if size >= _SEVERAL), default=1.0)

    def _check(self, message: pb.TensorSlice) -> Slice:
        if message.tensor >= len(self.fingerprint):
            raise ValueError(f"tensor {message.tensor} is unknown; the model has {len(self.fingerprint)} tensors")
        spec, chain = self.fingerprint[message.tensor], self._chains[message.tensor]
        if tuple(message.shape) != spec.shape or message.dtype != DTYPES[spec.dtype]:
            raise ValueError(
                f"the {spec} came with shape {list(message.shape)} and dtype number {message.dtype} "
                f"instead of {list(spec.shape)} and {DTYPES[spec.dtype]}"
            )
        if message.codec != chain.number:
            raise ValueError(f"the {spec} came in codec {message.codec}; in this session it takes {chain.name}")
        slices = self.slices(message.tensor)
        number, rest = divmod(message.offset, self.slice_length)
        if rest or number >= len(slices) or message.length != slices[number].length:
            raise ValueError(
                f"the {spec} came with a slice of {message.length} elements at {message.offset}; its slices have "
                f"{slices[0].length} elements and end within its {spec.size}"
            )
        return slices[number]


class SliceWriter:
    """What one sender writes its slices with, step after step: a chain for each, with what its stages remember.

    Args:
        layout: of the slices.
        policy: makes the chains; None for that of the layout, which has none of the sender's own stages.

    """

    def __init__(self, layout: Layout, policy: Policy | None = None) -> None:
        self._layout = layout
        self._policy = policy if policy is not None else layout.policy
        self._chains: dict[SliceKey, Chain] = {}

    def encode(self, piece: Slice, values: Float32Array, step: int) -> Data:
        """Return the bytes of a slice's values, flat; they may share their memory."""
        return self._chain(piece).encode(values, piece.context(step))

    def encode_anew(self, piece: Slice, values: Float32Array, step: int) -> Data:
        """Return the bytes that a sender would write who remembers nothing; what this one does stays as it is."""
        return self._policy.chain_for(piece.spec).encode(values, piece.context(step))

    def keep(self, piece: Slice, values: Float32Array, step: int) -> bool:
        """Send values with those that are encoded next; return whether there is an error feedback that can."""
        return self._chain(piece).keep(values, piece.context(step))

    def take_back(self, piece: Slice) -> bool:
        """Send what was encoded last once more, because it did not arrive; return whether that can be."""
        return self._chain(piece).take_back()

    def write_as(self, form: Form) -> None:
        """Write moves in another form from now on, where that may change; what the stages remember stays."""
        self._policy.in_use.form = form

    def state_dict(self) -> dict[SliceKey, State]:
        """Return what the stages remember, by slice; slices of which they remember nothing are left out."""
        states = {key: chain.state_dict() for key, chain in self._chains.items()}
        return {key: state for key, state in states.items() if state}

    def load_state_dict(self, states: Mapping[SliceKey, State]) -> None:
        """Go on from what another sender of the same layout remembered; what this one did is forgotten.

        Raises:
            ValueError: a state does not suit a slice's stages.

        """
        self._chains = {}
        for key, state in states.items():
            self._chain(self._layout.slice_of(key)).load_state_dict(state)

    def _chain(self, piece: Slice) -> Chain:
        chain = self._chains.get(piece.key)
        if chain is None:
            chain = self._chains[piece.key] = self._policy.chain_for(piece.spec)
        return chain


class ReceivedFrame(NamedTuple):
    """A frame as it came: its slices with their data, still encoded, and all the rest as a message."""

    message: pb.Frame
    slices: list[tuple[Slice, memoryview]]


def parse_frame(data: bytes, layout: Layout, limits: Limits[pb.Frame] | None = None) -> ReceivedFrame:
    """Return what is in a frame; slices' data are views of `data`.

    It is read up to the first thing that is wrong, so that a bad frame costs no more than a good one.

    Args:
        data: the frame.
        layout: of the slices.
        limits: of the frame without its slices; None for what comes from the coordinator, which is trusted.

    Raises:
        ValueError: it is no `Frame`, a slice is none of the session's or comes twice, or a field is out of its range.

    """
    seen: set[SliceKey] = set()

    def take(begin: int, end: int) -> tuple[Slice, memoryview]:
        piece, payload = layout.read(data, begin, end)
        if piece.key in seen:
            raise ValueError(f"the {piece.spec}: sent the slice at {piece.key.offset} twice")
        seen.add(piece.key)
        return piece, payload

    rest_bytes = MAX_MESSAGE_BYTES if limits is None else limits.bytes
    try:
        rest, slices = read_frame(data, _SLICES, take, rest_bytes=rest_bytes)
        message = pb.Frame.FromString(rest) if limits is None else limits.parse(rest)
    except WireError as error:
        raise ValueError(f"a frame {error}") from None
    except DecodeError:
        raise ValueError("a frame is no valid protobuf message") from None
    return ReceivedFrame(message, slices)


@dataclass
class FramePacker:
    """Packs slices of one step into frames of about `frame_bytes`."""

    step: int
    samples: int
    frame_bytes: int
    is_skipped: bool = False
    """Whether what is added weighs nothing, because its device skips its batch; there are no samples then."""
    masked_with: bytes = b""
    """With secure aggregation: the beginning of the device's key for the step."""
    _parts: list[Data] = field(init=False, default_factory=list)
    _size: int = field(init=False, default=0)

    def add(self, piece: Slice, data: Data) -> Iterator[bytes]:
        """Add a slice; yield the frames that are full before or after it."""
        size = memoryview(data).nbytes
        if self._size and self._size + size > self.frame_bytes:
            yield self.take()
        inner = piece.header + write_field(_DATA, size)
        self._size += size
        is_full = self._size >= self.frame_bytes
        # A frame that waits keeps no view of the sender's memory.
        self._parts += (write_field(_SLICES, len(inner) + size), inner, data if is_full else bytes(data))
        if is_full:
            yield self.take()

    def take(self, news: pb.Frame | None = None) -> bytes:
        """Return the frame as it is (perhaps without slices), with `news` in it, and begin a new one."""
        head = pb.Frame(
            step=self.step, samples=self.samples, skipped=self.is_skipped, masked_with=self.masked_with
        ).SerializeToString()
        tail = news.SerializeToString() if news is not None else b""
        frame = b"".join((head, *self._parts, tail))
        self._parts, self._size = [], 0
        return frame

    def skip(self) -> Iterator[bytes]:
        """Let whatever is added from now on weigh nothing; yield the frame with what was added before, if any."""
        if not self.is_empty:
            yield self.take()
        self.samples, self.is_skipped = 0, True

    @property
    def is_empty(self) -> bool:
        """Whether no slice is waiting."""
        return not self._parts
