"""Every codec: its round-trip error, its exact size, what it refuses, and what error feedback makes up for."""

import math

import numpy as np
import pytest
import torch
from edgenewton.v1 import MAX_MESSAGE_BYTES
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import CODEC_NUMBERS, CodecChoice, Context, Data
from edgenewton.v1.tensor_spec import TensorSpec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

CHOICES = {name: CodecChoice(name, powersgd_rank=2, topk_fraction=0.1) for name in CODEC_NUMBERS}
CODECS = {name: choice.codec() for name, choice in CHOICES.items()}  # read and asked only; encoders are made anew
codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
elementwise = pytest.mark.parametrize(
    "codec", [CODECS[name] for name in ("fp32", "bf16", "fp16")], ids=lambda c: c.name
)
with_feedback = pytest.mark.parametrize("codec", [CODECS["powersgd"], CODECS["topk"]], ids=lambda c: c.name)

shapes = st.tuples(st.integers(1, 20), st.integers(1, 20))
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
ordinary = st.floats(-1e4, 1e4, width=32).map(lambda x: x if abs(x) > 2**-14 else 0.0)


def arrays(elements):
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=elements))


def context(shape: tuple[int, ...], step: int = 0) -> Context:
    return Context(TensorSpec("w", shape), shape, step=step)


def encode(codec, values: np.ndarray) -> Data:
    """Return what a new sender writes first."""
    return CHOICES[codec.name].codec().encode(values.ravel(), context(values.shape))


def decode(codec, data: Data, shape: tuple[int, ...]) -> np.ndarray:
    return codec.decode(data, context(shape))


def round_trip(codec, values: np.ndarray) -> np.ndarray:
    return decode(codec, bytes(encode(codec, values)), values.shape).reshape(values.shape)


@codecs
@given(values=arrays(ordinary))
def test_size_is_exactly_what_the_codec_says(codec, values):
    assert memoryview(encode(codec, values)).nbytes == codec.encoded_size(values.shape)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("fp32", 4 * 6000),
        ("bf16", 2 * 6000),
        ("fp16", 2 * 6000),
        ("int8", 6000 + 4 * 24),  # 24 blocks of 256
        ("powersgd", 2 * 2 * (60 + 100)),  # rank 2, both factors in bf16
        ("topk", 600 * 6),  # a tenth, 4 + 2 bytes each
    ],
)
def test_sizes_by_hand(name, size):
    assert CODECS[name].encoded_size((60, 100)) == size


def allowed_error(name: str, values: np.ndarray) -> np.ndarray | float:
    """Return the largest error that the codec may make."""
    if name == "int8":
        blocks = np.pad(values.ravel(), (0, -values.size % 256)).reshape(-1, 256)
        return np.repeat(np.abs(blocks).max(axis=1) / 254, 256)[: values.size].reshape(values.shape) * 1.001 + 1e-38
    return {"fp32": 0.0, "bf16": 2**-8, "fp16": 2**-11}[name] * np.abs(values)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16", "int8"])
@given(values=arrays(ordinary))
def test_round_trip_error_of_elements_is_bounded(name, values):
    assert (np.abs(round_trip(CODECS[name], values) - values) <= allowed_error(name, values)).all()


@given(values=arrays(ordinary))
def test_topk_keeps_the_largest_elements(values):
    back = round_trip(CODECS["topk"], values)
    k = CODECS["topk"].codec.kept(values.shape)
    largest = np.sort(np.abs(values), axis=None)[-k:]
    assert np.count_nonzero(back) <= k
    assert np.allclose(np.sort(np.abs(back), axis=None)[-k:], largest, rtol=2**-8)


def test_powersgd_finds_a_matrix_of_its_rank():
    rng = np.random.default_rng(1)
    values = (rng.normal(size=(60, 2)) @ rng.normal(size=(2, 100))).astype(np.float32)
    back = round_trip(CODECS["powersgd"], values)
    assert np.linalg.norm(back - values) < 0.01 * np.linalg.norm(values)


@with_feedback
def test_error_feedback_makes_the_sum_over_steps_that_of_the_uncompressed(codec):
    rng = np.random.default_rng(0)
    shape = (40, 30)
    steady = rng.normal(size=shape).astype(np.float32)
    encoder = CHOICES[codec.name].codec()
    wanted = sent = np.zeros(shape, dtype=np.float64)
    errors = []
    for step in range(1, 201):
        gradient = steady + 0.1 * rng.normal(size=shape).astype(np.float32)
        wanted = wanted + gradient
        sent = sent + decode(codec, encoder.encode(gradient.ravel(), context(shape)), shape).reshape(shape)
        # What is missing is exactly what the encoder remembers.
        assert np.allclose(wanted - sent, encoder.error.reshape(shape), atol=1e-3 * step)
        errors.append(np.linalg.norm(wanted - sent) / np.linalg.norm(wanted))
    assert errors[-1] < 0.15
    assert errors[-1] < errors[20] / 3


def test_without_error_feedback_the_sum_would_not_converge():
    rng = np.random.default_rng(0)
    steady = rng.normal(size=(40, 30)).astype(np.float32)
    once = round_trip(CODECS["topk"], steady)
    assert np.linalg.norm(steady - once) > 0.5 * np.linalg.norm(steady)


@elementwise
@given(values=arrays(finite))
def test_finite_values_stay_finite_and_a_second_trip_changes_nothing(codec, values):
    once = round_trip(codec, values)
    assert np.isfinite(once).all()
    assert np.array_equal(round_trip(codec, once), once)


@elementwise
def test_values_that_are_not_finite_stay_so(codec):
    back = round_trip(codec, np.array([np.nan, np.inf, -np.inf, 1.0], dtype=np.float32))
    assert np.isnan(back[0])
    assert (back[1], back[2], back[3]) == (np.inf, -np.inf, 1.0)


@given(values=arrays(finite))
def test_bf16_agrees_with_torch(values):
    theirs = torch.from_numpy(values.copy()).to(torch.bfloat16).float().numpy()
    # torch rounds the largest values up to infinity; ours stay at the largest finite one.
    comparable = np.isfinite(theirs)
    assert np.array_equal(round_trip(CODECS["bf16"], values)[comparable], theirs[comparable])


@codecs
@given(data=st.binary(max_size=400), shape=shapes)
def test_any_bytes_are_decoded_or_refused(codec, data, shape):
    try:
        values = decode(codec, data, shape)
    except ValueError:
        return
    assert values.dtype == np.float32
    assert values.shape == (math.prod(shape),)


@codecs
def test_data_of_a_wrong_size_are_refused(codec):
    with pytest.raises(
        ValueError, match=f"8x8 elements take {codec.encoded_size((8, 8))} bytes as {codec.name}, but 3"
    ):
        decode(codec, b"abc", (8, 8))


@pytest.mark.parametrize("positions", [[5, 5], [7, 3], [3, 64]])
def test_positions_that_lie_are_refused(positions):
    codec = CodecChoice("topk", topk_fraction=2 / 64).codec()
    with pytest.raises(ValueError, match="positions of top-k are not ascending numbers below 64"):
        decode(codec, np.array(positions, "<u4").tobytes() + bytes(4), (64,))


@codecs
def test_empty_arrays_are_coded_too(codec):
    if not codec.takes_whole_tensors:
        assert len(round_trip(codec, np.empty(0, np.float32))) == 0


@pytest.mark.parametrize(
    ("spec", "name", "codec"),
    [
        (TensorSpec("w", (100, 100)), "topk", "topk"),
        (TensorSpec("w", (100, 100)), "powersgd", "powersgd"),
        (TensorSpec("w", (100, 100)), "int8", "int8"),
        (TensorSpec("b", (100,)), "topk", "bf16"),  # too few to be worth it
        (TensorSpec("b", (5000,)), "powersgd", "bf16"),  # no matrix
        (TensorSpec("w", (2, 1000)), "powersgd", "bf16"),  # its factors would be larger
        (TensorSpec("w", (MAX_MESSAGE_BYTES, 64)), "powersgd", "bf16"),  # its factors fit into no frame
        (TensorSpec("w", (100, 100), kind="parameter"), "topk", "fp32"),
        (TensorSpec("w", (100, 100), kind="parameter"), "bf16", "fp32"),
        (TensorSpec("A", (5050,), kind="curvature"), "int8", "bf16"),
        (TensorSpec("A", (5050,), kind="curvature"), "fp16", "bf16"),
        (TensorSpec("A", (5050,), kind="curvature"), "fp32", "fp32"),
    ],
)
def test_tensors_take_a_codec_that_is_safe_for_them(spec, name, codec):
    assert CHOICES[name].policy().chain_for(spec).name == codec


def test_a_coordinators_choice_reaches_the_device():
    settings = pb.ExchangeSettings(codec=pb.CODEC_TOPK, topk_fraction=0.1, powersgd_rank=2)
    assert CodecChoice.from_proto(settings) == CHOICES["topk"]
    with pytest.raises(ValueError, match="unknown codec 14; known are fp32"):
        CodecChoice.from_proto(pb.ExchangeSettings(codec=14))
