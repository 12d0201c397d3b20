"""Every codec: its round-trip error, its exact size, what it refuses, and what error feedback makes up for."""

import math

import numpy as np
import pytest
import torch
from edgenewton.v1 import MAX_MESSAGE_BYTES
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import CODEC_NUMBERS, CodecChoice, Context, Data, rice
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
with_feedback = pytest.mark.parametrize(
    "codec", [codec for codec in CODECS.values() if codec.keeps_errors], ids=lambda c: c.name
)
BLOCKS = ["int4", "ternary", "sign"]
SPARSE = {"sparse4": "int4", "sparse2": "ternary", "sparse1": "sign"}
"""And the codecs that their values take."""

shapes = st.tuples(st.integers(1, 20), st.integers(1, 20))
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
ordinary = st.floats(-1e4, 1e4, width=32).map(lambda x: x if abs(x) > 2**-14 else 0.0)


def arrays(elements):
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=elements))


def normal(seed: int) -> np.ndarray:
    """Return a matrix of which a tenth has several blocks."""
    return np.random.default_rng(seed).normal(size=(60, 100)).astype(np.float32)


def context(shape: tuple[int, ...], step: int = 0) -> Context:
    return Context(TensorSpec("w", shape), shape, step=step)


def encode(codec, values: np.ndarray) -> Data:
    """Return what a new sender writes first."""
    return CHOICES[codec.name].codec().encode(values.ravel(), context(values.shape))


def bare(codec):
    """Return the codec without its error feedback."""
    return codec.codec if codec.keeps_errors else codec


def decode(codec, data: Data, shape: tuple[int, ...]) -> np.ndarray:
    return codec.decode(data, context(shape))


def round_trip(codec, values: np.ndarray) -> np.ndarray:
    return decode(codec, bytes(encode(codec, values)), values.shape).reshape(values.shape)


@codecs
@given(values=arrays(ordinary))
def test_size_is_what_the_codec_says(codec, values):
    smallest, largest = codec.smallest_size(values.shape), codec.encoded_size(values.shape)
    assert smallest <= memoryview(encode(codec, values)).nbytes <= largest
    assert (smallest == largest) or codec.name in (*SPARSE, "auto")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("fp32", 4 * 6000),
        ("bf16", 2 * 6000),
        ("fp16", 2 * 6000),
        ("int8", 6000 + 4 * 24),  # 24 blocks of 256
        ("powersgd", 2 * 2 * (60 + 100)),  # rank 2, both factors in bf16
        ("topk", 600 * 6),  # a tenth, 4 + 2 bytes each
        ("int4", 3000 + 2 * 24),
        ("ternary", 1200 + 2 * 24),
        ("sign", 750 + 2 * 24),
        # 600 values, mostly in 3 blocks; 3 bits of remainder each; in unary a bit each, and one for 8 others
        ("sparse4", 300 + 2 * 3 + 225 + (600 + 5400 // 8 + 7) // 8),
        ("sparse2", 120 + 2 * 3 + 225 + (600 + 5400 // 8 + 7) // 8),
        ("sparse1", 75 + 2 + 225 + (600 + 5400 // 8 + 7) // 8),
    ],
)
def test_sizes_by_hand(name, size):
    assert CODECS[name].encoded_size((60, 100)) == size


def allowed_error(name: str, values: np.ndarray) -> np.ndarray | float:
    """Return the largest error that the codec may make."""
    if name in ("int8", *BLOCKS):
        errors = []
        for begin in range(0, values.size, 256):
            block = np.abs(values.ravel()[begin : begin + 256]).astype(np.float64)
            # The scale, rounded to bf16, is within 2^-9 of what it was to be.
            clipped = min(block.max(), 2.2 * np.sqrt(np.square(block).mean()))
            errors.append(
                {
                    "int8": np.full(block.shape, block.max() / 254 * 1.001),
                    "int4": np.full(block.shape, block.max() / 13),
                    "ternary": np.where(block > clipped / 2, np.abs(block - clipped), block) + clipped * 2**-7,
                    "sign": np.abs(block - block.mean()) + block.mean() * 2**-7,
                }[name]
            )
        return np.concatenate(errors).reshape(values.shape) + 1e-37
    return {"fp32": 0.0, "bf16": 2**-8, "fp16": 2**-11}[name] * np.abs(values)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16", "int8", *BLOCKS])
@given(values=arrays(ordinary))
def test_round_trip_error_of_elements_is_bounded(name, values):
    assert (np.abs(round_trip(CODECS[name], values) - values) <= allowed_error(name, values)).all()


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("length", [1, 255, 256, 257, 256 * 256 + 300])
def test_blocks_do_not_touch_each_other(name, length):
    """Blocks of magnitudes that differ greatly, zeros among them; several chunks, and a last block that is not full."""
    numbers = np.arange(length // 256 + 1)
    scales = np.where(numbers % 3 == 2, 0.0, np.exp2(numbers % 7 * 10.0 - 40))
    signs = np.random.default_rng(length).choice([-1.0, 1.0], length)
    values = (np.repeat(scales, 256)[:length] * signs).astype(np.float32)
    assert np.allclose(round_trip(CODECS[name], values), values, rtol=2**-8, atol=0)


@pytest.mark.parametrize("name", BLOCKS)
def test_magnitudes_at_the_ends_of_float32_neither_overflow_nor_vanish(name):
    for magnitude in (np.finfo(np.float32).max, 1e25, 1e-20, 1e-36):
        values = np.full(300, magnitude, np.float32)
        back = round_trip(CODECS[name], values)
        assert np.isfinite(back).all()
        if magnitude < 1e30:
            assert np.allclose(back, values, rtol=2**-8, atol=0)
    assert not round_trip(CODECS[name], np.full(300, 1e-44, np.float32)).any()


def test_an_outlier_does_not_zero_a_ternary_block():
    values = np.random.default_rng(0).normal(size=256).astype(np.float32)
    values[7] = 10.0
    assert np.count_nonzero(round_trip(CODECS["ternary"], values)) > 256 // 6


@pytest.mark.parametrize("name", ["topk", *SPARSE])
@given(values=arrays(ordinary))
def test_topk_keeps_the_largest_elements(name, values):
    back = round_trip(CODECS[name], values)
    k = CODECS[name].codec.kept(values.shape)
    largest = np.sort(np.abs(values), axis=None)[-k:]
    assert np.count_nonzero(back) <= k
    if name == "topk":
        assert np.allclose(np.sort(np.abs(back), axis=None)[-k:], largest, rtol=2**-8)
    else:
        assert (np.abs(values[back != 0]) >= largest[0]).all()


@pytest.mark.parametrize("name", SPARSE)
@given(values=arrays(ordinary) | st.integers(0, 99).map(normal))
def test_kept_elements_come_as_those_of_the_values_codec(name, values):
    """All that it keeps, and not each block of the tensor, is what has blocks."""
    back, flat = round_trip(CODECS[name], values).ravel(), values.ravel()
    kept = np.sort(np.argsort(-np.abs(flat), kind="stable")[: CODECS[name].codec.kept(values.shape)])
    if name == "sparse1":  # as sign, but all in one block
        size = np.abs(flat[kept]).astype(np.float64)
        allowed = np.abs(size - size.mean()) + size.mean() * 2**-7 + 1e-37
    else:
        allowed = allowed_error(SPARSE[name], flat[kept])
    assert (np.abs(back[kept] - flat[kept]) <= allowed).all()
    assert not np.delete(back, kept).any()


def test_the_bytes_of_signs_and_their_positions_by_hand():
    """A scale of 2 and a byte of signs; gaps 0 1 6 2 0 16 9 22, as remainders of four and, in unary, quotients."""
    values = np.full(64, 0.5, np.float32)
    positions = [0, 2, 9, 12, 13, 30, 40, 63]
    values[positions] = [1, -2, -3, 1, 2, 3, 1, -3]
    codec = CodecChoice("sparse1", topk_fraction=1 / 8).codec()
    data = codec.encode(values, context((64,)))
    assert bytes(data).hex(" ") == "00 40 86 42 8c 3b 24 08"
    back = decode(codec, data, (64,))
    assert np.array_equal(np.flatnonzero(back), positions)
    assert np.array_equal(back[positions], [2, -2, -2, 2, 2, 2, 2, -2])


@given(
    positions=st.integers(1, 3000).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1, max_size=50))
    )
)
def test_positions_survive_and_take_what_was_announced(positions):
    length, chosen = positions
    ascending = np.array(sorted(chosen))
    data = rice.write(ascending, length)
    count = len(ascending)
    assert rice.smallest_size(count, length) <= len(data) <= rice.largest_size(count, length)
    assert np.array_equal(rice.read(np.frombuffer(data, np.uint8), count, length), ascending)


def test_positions_at_random_take_little_more_than_their_entropy():
    n, k = 1_000_000, 10_000
    positions = np.sort(np.random.default_rng(0).choice(n, k, replace=False))
    p = k / n
    entropy = -n * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8
    assert len(rice.write(positions, n)) < 1.02 * entropy


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
    # Two levels of a sparse tenth send less in a step than the others do: it takes longer to reach their error.
    bound = 0.4 if codec.name == "sparse2" else 0.15
    wanted = left = np.zeros(shape, dtype=np.float64)
    errors = []
    for step in range(1, 201):
        gradient = steady + 0.1 * rng.normal(size=shape).astype(np.float32)
        wanted = wanted + gradient
        sent = decode(codec, encoder.encode(gradient.ravel(), context(shape)), shape).reshape(shape)
        left = encoder.codec.error_decay * left + gradient - sent
        # What is missing is exactly what the encoder remembers.
        assert np.allclose(left, encoder.error.reshape(shape), atol=1e-3 * step)
        errors.append(np.linalg.norm(left) / np.linalg.norm(wanted))
    assert errors[-1] < bound
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


@pytest.mark.parametrize("codec", [CODECS[name] for name in ("int8", *BLOCKS, *SPARSE)], ids=lambda c: c.name)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_seen_by_the_receiver(codec, bad):
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    values[[300, 700]] = bad
    with np.errstate(all="ignore"):
        data = bare(codec).encode(values, context((1000,)))
        assert not np.isfinite(decode(codec, data, (1000,))).all()


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
@given(shape=shapes, seed=st.integers(0, 99), changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255))))
def test_damaged_bytes_are_decoded_or_refused(codec, shape, seed, changes):
    data = bytearray(encode(codec, np.random.default_rng(seed).normal(size=shape).astype(np.float32)))
    for position, byte in changes:
        data[position % len(data)] = byte
    try:
        values = decode(codec, bytes(data), shape)
    except ValueError:
        return
    assert values.shape == (math.prod(shape),)


@codecs
def test_bytes_that_were_cut_or_added_to_are_refused(codec):
    data = bytes(encode(codec, np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)))
    for wrong in (*(data[:size] for size in range(len(data))), data + b"\0", data + data):
        with pytest.raises(ValueError, match=f"{codec.name}"):
            decode(codec, wrong, (20, 30))


@codecs
def test_data_of_a_wrong_size_are_refused(codec):
    with pytest.raises(
        ValueError, match=f"8x8 elements take .*{codec.encoded_size((8, 8))} bytes as {codec.name}, but 1"
    ):
        decode(codec, b"a", (8, 8))


@pytest.mark.parametrize("positions", [[5, 5], [7, 3], [3, 64]])
def test_positions_that_lie_are_refused(positions):
    codec = CodecChoice("topk", topk_fraction=2 / 64).codec()
    with pytest.raises(ValueError, match="positions of top-k are not ascending numbers below 64"):
        decode(codec, np.array(positions, "<u4").tobytes() + bytes(4), (64,))


@pytest.mark.parametrize(
    ("name", "level", "message"),
    [
        ("int4", 0x10, "a level of int4 is -8"),
        ("ternary", 243, "a byte of ternary is 243; five levels make less than 243"),
    ],
)
def test_levels_that_do_not_exist_are_refused(name, level, message):
    with pytest.raises(ValueError, match=message):
        decode(CODECS[name], bytes(2) + bytes([level]) * (CODECS[name].encoded_size((255,)) - 2), (255,))


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (b"\x7f", "7 positions came instead of 8"),
        (b"\xff\1", "9 positions came instead of 8"),
        (b"\xff\0", "bytes came after the last position"),
        (b"\0\0\xff", "position 71 came of 64 elements"),
    ],
)
def test_coded_positions_that_lie_are_refused(name, rest, message):
    """Eight of 64 elements: 2 bits of remainder each, then at most 8 + 56 // 4 bits in unary."""
    codec = CodecChoice(name, topk_fraction=1 / 8).codec()
    values = bytes(encode(CODECS[SPARSE[name]], np.zeros(8, np.float32)))
    with pytest.raises(ValueError, match=f"positions of {name} are wrong: {message}"):
        decode(codec, values + bytes(2) + rest, (64,))


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
        (TensorSpec("w", (100, 100), kind="delta"), "ternary", "ternary"),
        (TensorSpec("b", (100,), kind="delta"), "ternary", "int4"),
        (TensorSpec("b", (100,), kind="delta"), "int8", "int8"),
        (TensorSpec("b", (10,), kind="delta"), "ternary", "bf16"),
        (TensorSpec("w", (100, 100), kind="delta"), "auto", "auto"),
        (TensorSpec("b", (1023,), kind="delta"), "auto", "int4"),
        (TensorSpec("b", (10,), kind="delta"), "auto", "bf16"),
        (TensorSpec("w", (100, 100)), "auto", "fp32"),
        (TensorSpec("A", (5050,), kind="curvature"), "auto", "fp32"),
        (TensorSpec("b", (100,), kind="delta"), "topk", "bf16"),
        *((TensorSpec("b", (100,)), name, "bf16") for name in (*BLOCKS, *SPARSE)),
        *((TensorSpec("A", (5050,), kind="curvature"), name, "int8") for name in ("int8", *BLOCKS, *SPARSE)),
        (TensorSpec("A", (465,), kind="curvature"), "int8", "bf16"),
        (TensorSpec("A", (5050,), kind="curvature"), "topk", "bf16"),
        (TensorSpec("A", (5050,), kind="curvature"), "fp16", "bf16"),
        (TensorSpec("A", (5050,), kind="curvature"), "fp32", "fp32"),
    ],
)
def test_tensors_take_a_codec_that_is_safe_for_them(spec, name, codec):
    assert CHOICES[name].policy().chain_for(spec).name == codec


@pytest.mark.parametrize(
    ("spec", "name", "is_whole"),
    [
        (TensorSpec("w", (100, 100)), "int4", True),
        *((TensorSpec("w", (100, 100)), name, True) for name in SPARSE),
        (TensorSpec("w", (100, 100)), "powersgd", True),
        (TensorSpec("w", (100, 100)), "topk", False),
        (TensorSpec("w", (100, 100)), "int8", False),
        (TensorSpec("w", (100,)), "int4", False),  # in bf16
        (TensorSpec("w", (100,), kind="delta"), "int4", True),
        (TensorSpec("w", (1 << 20,), kind="delta"), "fp32", True),
        (TensorSpec("w", (1 << 21,), kind="delta"), "fp32", False),  # half a message has 2^20 elements of fp32
        (TensorSpec("w", (1 << 21,), kind="delta"), "int4", True),
        (TensorSpec("w", (1 << 23,)), "int4", False),
        (TensorSpec("w", (1 << 24,)), "sign", True),
        *((TensorSpec("w", (1 << 25,)), name, False) for name in SPARSE),  # few bytes, but many elements
    ],
)
def test_which_tensors_are_one_slice_follows_from_spec_and_choice(spec, name, is_whole):
    assert CHOICES[name].takes_whole(spec) == is_whole
    assert CHOICES[name].policy().chain_for(spec).takes_whole_tensors == is_whole


def test_a_coordinators_choice_reaches_the_device():
    settings = pb.ExchangeSettings(codec=pb.CODEC_TOPK, topk_fraction=0.1, powersgd_rank=2)
    assert CodecChoice.from_proto(settings) == CHOICES["topk"]
    with pytest.raises(ValueError, match="unknown codec 14; known are auto, fp32"):
        CodecChoice.from_proto(pb.ExchangeSettings(codec=14))
