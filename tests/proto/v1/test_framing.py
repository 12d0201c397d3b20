"""Slices, frames and their parser, against protobuf's own."""

import numpy as np
import pytest
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import CODEC_NUMBERS, CodecChoice
from edgenewton.v1.framing import FramePacker, Layout, SliceWriter, check_values, parse_frame
from edgenewton.v1.tensor_spec import TensorSpec
from edgenewton.v1.wire import read_frame, split, write_varint
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

FRAME_BYTES = 1024
SPEC = TensorSpec("fc.weight", (20, 30))
LAYOUT = Layout((SPEC,), CodecChoice("fp32").policy(), FRAME_BYTES)


def frames_of(layout: Layout, values: list[np.ndarray], step: int = 3, samples: int = 7) -> list[bytes]:
    packer, writer = FramePacker(step, samples, layout.frame_bytes), SliceWriter(layout)
    frames = []
    for tensor, flat in enumerate(values):
        for piece in layout.slices(tensor):
            part = flat[piece.key.offset : piece.key.offset + piece.length]
            frames += packer.add(piece, writer.encode(piece, part, step))
    return [*frames, packer.take(pb.Frame(contribution=pb.Contribution(loss=2.5)))]


@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), min_size=1, max_size=6),
    name=st.sampled_from(["fp32", "bf16", "fp16"]),
)
def test_tensors_survive_slices_and_frames(shapes, name):
    specs = tuple(TensorSpec(f"w{i}", shape) for i, shape in enumerate(shapes))
    layout = Layout(specs, CodecChoice(name).policy(), FRAME_BYTES)
    values = [(np.arange(spec.size) % 250).astype(np.float32) for spec in specs]
    back = [np.full(spec.size, np.nan, dtype=np.float32) for spec in specs]
    frames = frames_of(layout, values)
    for frame in frames:
        message, slices = parse_frame(frame, layout)
        assert (message.step, message.samples) == (3, 7)
        assert sum(payload.nbytes for _, payload in slices) <= FRAME_BYTES
        for piece, payload in slices:
            back[piece.key.tensor][piece.key.offset : piece.key.offset + piece.length] = piece.decode(
                payload, message.step
            )
    assert message.contribution.loss == 2.5
    assert all(np.array_equal(a, b) for a, b in zip(values, back, strict=True))


@pytest.mark.parametrize("name", CODEC_NUMBERS)
def test_frames_are_ordinary_protobuf_messages(name):
    layout = Layout((SPEC,), CodecChoice(name).policy(), FRAME_BYTES)
    values = np.random.default_rng(0).normal(size=600).astype(np.float32)
    for frame in frames_of(layout, [values]):
        message, slices = parse_frame(frame, layout)
        theirs = pb.Frame.FromString(frame)
        assert [piece.data for piece in theirs.slices] == [bytes(payload) for _, payload in slices]
        assert [(s.tensor, s.offset, s.length) for s in theirs.slices] == [(*p.key, p.length) for p, _ in slices]
        theirs.ClearField("slices")
        assert message == theirs
        again = pb.Frame.FromString(frame).SerializeToString()
        assert [bytes(payload) for _, payload in parse_frame(again, layout).slices] == [bytes(p) for _, p in slices]


FUZZED = pb.Frame(
    step=5,
    samples=9,
    slices=[pb.TensorSlice(tensor=1, shape=[2, 3], data=b"abc"), pb.TensorSlice(offset=1 << 40, data=b"")],
    contribution=pb.Contribution(loss=1.0),
).SerializeToString()


def fuzzed() -> st.SearchStrategy[bytes]:
    """Bytes of all kinds: noise, a frame that was cut, and a frame with some bytes changed."""
    changes = st.lists(st.tuples(st.integers(0, len(FUZZED) - 1), st.integers(0, 255)), max_size=4)

    def change(pairs: list[tuple[int, int]]) -> bytes:
        data = bytearray(FUZZED)
        for position, byte in pairs:
            data[position] = byte
        return bytes(data)

    return st.binary(max_size=60) | st.integers(0, len(FUZZED)).map(lambda n: FUZZED[:n]) | changes.map(change)


@given(data=fuzzed())
@example(data=b"")
@example(data=b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(data=b"\x08\x80\x00")
@example(data=b"\x1a\x04\x3a\x00\x3a\x00")
def test_the_parser_reads_whatever_protobuf_writes_and_nothing_that_it_does_not_read(data):
    try:
        rest, slices = read_frame(
            data, 3, lambda begin, end: split(data, begin, end, 7, header_bytes=100), rest_bytes=100
        )
        ours = pb.Frame.FromString(rest)
        headers = [pb.TensorSlice.FromString(header) for header, _ in slices]
    except (ValueError, DecodeError) as error:
        # Groups, which no message of ours has, are refused here and skipped by protobuf; and what it never writes is
        # refused here and read by protobuf: padded numbers, and a field twice.
        try:
            theirs = pb.Frame.FromString(data)
        except DecodeError:
            return
        is_canonical = "no canonical" not in str(error) and "twice" not in str(error)
        assert not is_canonical or any(byte & 7 in (3, 4) for byte in data)
        return
    theirs = pb.Frame.FromString(data)
    for header, (_, payload) in zip(headers, slices, strict=True):
        header.data = bytes(payload)
    ours.slices.extend(headers)
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


@given(data=fuzzed())
def test_a_frame_from_anybody_is_taken_or_refused_in_words(data):
    try:
        _, slices = parse_frame(data, LAYOUT)
    except ValueError:
        return
    assert all(piece.spec is SPEC for piece, _ in slices)


@given(value=st.integers(0, (1 << 64) - 1))
def test_varints_are_protobufs(value):
    assert b"\x08" + write_varint(value) == (pb.Frame(step=value).SerializeToString() or b"\x08\x00")


def broken(**changes) -> bytes:
    piece = LAYOUT.slices(0)[1]
    message = pb.TensorSlice.FromString(piece.header)
    message.data = np.zeros(piece.length, "<f4").tobytes()
    for name, value in changes.items():
        if name == "shape":
            message.ClearField("shape")
            message.shape.extend(value)
        else:
            setattr(message, name, value)
    return pb.Frame(step=1, slices=[message]).SerializeToString()


def decode(frame: bytes) -> np.ndarray:
    ((piece, payload),) = parse_frame(frame, LAYOUT).slices
    values = piece.decode(payload, step=0)
    check_values(piece.spec, values)
    return values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor": 1}, "tensor 1 is unknown; the model has 1"),
        ({"shape": [30, 20]}, r"'fc.weight', 20 x 30 float32 came with shape \[30, 20\]"),
        ({"dtype": pb.DTYPE_FLOAT64}, "dtype number 2 instead of"),
        ({"codec": pb.CODEC_BF16}, "came in codec 3; in this session it takes fp32"),
        ({"codec": 9}, "came in codec 9"),
        ({"offset": 255}, "slice of 256 elements at 255; its slices have 256 elements"),
        ({"offset": 768}, "at 768"),
        ({"offset": 1 << 62}, "end within its 600"),
        ({"length": 255}, "slice of 255 elements"),
        ({"length": 1 << 62}, "elements at 256"),
        ({"data": b"abc"}, "256 elements take 1024 bytes as fp32, but 3 bytes came"),
        ({"data": np.full(256, np.nan, "<f4").tobytes()}, "a value that is not finite"),
        ({"data": np.full(256, -np.inf, "<f4").tobytes()}, "a value that is not finite"),
        ({"data": np.full(256, 1e26, "<f4").tobytes()}, r"a value beyond ±1e\+25"),
    ],
)
def test_a_slice_that_breaks_the_contract_is_named(changes, message):
    assert len(decode(broken())) == 256
    with pytest.raises(ValueError, match=message):
        decode(broken(**changes))


def test_a_waiting_frame_keeps_no_view_of_the_senders_memory():
    values = np.ones(88, dtype=np.float32)
    piece = Layout((TensorSpec("w", (88,)),), CodecChoice("fp32").policy(), FRAME_BYTES).slices(0)[0]
    packer = FramePacker(0, 1, FRAME_BYTES)
    assert not list(packer.add(piece, values.data))
    values[:] = 5
    assert np.ones(88, "<f4").tobytes() in packer.take()
