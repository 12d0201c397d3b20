import numpy as np
import pytest
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codec import CODECS
from edgenewton.v1.fingerprint import (
    TensorSpec,
    fingerprint_from_proto,
    first_difference,
    first_option_difference,
)
from edgenewton.v1.framing import FramePacker, make_slices, read_slice
from hypothesis import given
from hypothesis import strategies as st

FP32 = CODECS["fp32"]
FRAME_BYTES = 1024


def slices(spec: TensorSpec, values: np.ndarray, codec=FP32) -> list[pb.TensorSlice]:
    return list(make_slices(0, spec, codec, FRAME_BYTES, values))


@given(
    shape=st.lists(st.integers(0, 40), max_size=3).map(tuple),
    codec=st.sampled_from(list(CODECS.values())),
)
def test_slices_put_together_are_the_tensor(shape, codec):
    spec = TensorSpec("w", shape)
    values = np.arange(spec.size, dtype=np.float32) % 250
    back = np.full(spec.size, np.nan, dtype=np.float32)
    for piece in slices(spec, values, codec):
        assert len(piece.data) <= FRAME_BYTES
        wire = pb.TensorSlice.FromString(piece.SerializeToString())
        back[wire.offset : wire.offset + wire.length] = read_slice(wire, (spec,), codec, FRAME_BYTES)
    assert np.array_equal(back, values)


@given(sizes=st.lists(st.integers(1, 900), max_size=20))
def test_frames_hold_all_slices_in_order_and_stay_within_their_size(sizes):
    packer = FramePacker(step=3, samples=7, frame_bytes=FRAME_BYTES)
    frames, sent = [], []
    for index, size in enumerate(sizes):
        piece = pb.TensorSlice(tensor=index, data=bytes(size))
        sent.append(piece)
        full = packer.add(piece)
        if full is not None:
            frames.append(full)
    frames.append(packer.take())
    assert [piece for frame in frames for piece in frame.slices] == sent
    assert all(sum(len(p.data) for p in frame.slices) <= FRAME_BYTES for frame in frames)
    assert all((frame.step, frame.samples) == (3, 7) for frame in frames)


def broken(**changes) -> pb.TensorSlice:
    spec = TensorSpec("fc.weight", (20, 30))
    piece = slices(spec, np.zeros(600, dtype=np.float32))[1]
    for name, value in changes.items():
        if name == "shape":
            piece.ClearField("shape")
            piece.shape.extend(value)
        else:
            setattr(piece, name, value)
    return piece


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor": 1}, "tensor 1 is unknown; the model has 1"),
        ({"shape": [30, 20]}, r"'fc.weight', 20 x 30 float32 came with shape \[30, 20\]"),
        ({"dtype": pb.DTYPE_FLOAT64}, "dtype number 2 instead of"),
        ({"codec": pb.CODEC_BF16}, "came in codec 3; the session's codec is fp32"),
        ({"codec": 9}, "came in codec 9"),
        ({"offset": 255}, "slice of 256 elements at 255; slices begin at multiples of 256"),
        ({"offset": 600}, "at 600"),
        ({"offset": 1 << 62}, "end within its 600 elements"),
        ({"length": 255}, "slice of 255 elements"),
        ({"length": 1 << 62}, "elements at 256"),
        ({"data": b"abc"}, "256 elements take 1024 bytes as fp32, but 3 bytes came"),
        ({"data": np.full(256, np.nan, "<f4").tobytes()}, "a value that is not finite"),
        ({"data": np.full(256, np.inf, "<f4").tobytes()}, "a value that is not finite"),
    ],
)
def test_a_slice_that_breaks_the_contract_is_named(changes, message):
    spec = TensorSpec("fc.weight", (20, 30))
    assert read_slice(broken(), (spec,), FP32, FRAME_BYTES) is not None
    with pytest.raises(ValueError, match=message):
        read_slice(broken(**changes), (spec,), FP32, FRAME_BYTES)


def test_values_whose_sum_overflows_are_finite_all_the_same():
    spec = TensorSpec("w", (4,))
    values = np.full(4, np.finfo(np.float32).max)
    (piece,) = slices(spec, values)
    assert np.array_equal(read_slice(piece, (spec,), FP32, FRAME_BYTES), values)


@given(
    st.lists(
        st.builds(
            TensorSpec,
            name=st.text(min_size=1, max_size=5),
            shape=st.lists(st.integers(0, 9), max_size=3).map(tuple),
            dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16"]),
            kind=st.sampled_from(["gradient", "parameter", "curvature"]),
        ),
        min_size=1,
        unique_by=lambda spec: (spec.kind, spec.name),
    )
)
def test_fingerprint_survives_the_wire(specs):
    assert fingerprint_from_proto([spec.to_proto() for spec in specs]) == tuple(specs)
    assert first_difference(specs, specs) is None


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no tensors"),
        ([TensorSpec("w", (2,)).to_proto()] * 2, "'w', 2 float32 is named twice"),
        ([pb.TensorSpec(name="w", dtype=99, kind=1)], "'w' has dtype 99"),
        ([TensorSpec("w", (1 << 40,)).to_proto()], "is larger than"),
    ],
)
def test_wrong_fingerprints_are_named(messages, message):
    with pytest.raises(ValueError, match=message):
        fingerprint_from_proto(messages)


def test_the_first_difference_is_named_with_both_shapes():
    ours = [TensorSpec("a", (1,)), TensorSpec("b", (2, 3)), TensorSpec("c", (4,))]
    theirs = [TensorSpec("a", (1,)), TensorSpec("b", (3, 3)), TensorSpec("c", (5,))]
    assert first_difference(ours, theirs) == (
        "the session has the gradient of 'b', 2 x 3 float32 where this device has the gradient of 'b', 3 x 3 float32"
    )
    assert "which this device lacks" in first_difference(ours, ours[:2])
    assert "which the session lacks" in first_difference(ours[:2], ours)
    assert first_option_difference({"lr": "0.1", "x": "1"}, {"lr": "0.2", "x": "1"}) == (
        "option 'lr' is 0.1 in the session but 0.2 on this device"
    )
