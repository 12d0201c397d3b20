"""Reals as integers with common scales: sums, what is clipped, and scales that follow what is exchanged."""

import numpy as np
import pytest
from edgenewton.secure_aggregation.contribution_form import ContributionForm
from edgenewton.secure_aggregation.fixed_point import BLOCK, EXACT_RESOLUTION, FixedPoint, Scales
from edgenewton.secure_aggregation.modular_integers import add
from edgenewton.v1.codecs import CodecChoice
from edgenewton.v1.framing import Layout
from edgenewton.v1.tensor_spec import TensorSpec
from hypothesis import given, settings
from hypothesis import strategies as st


def summed(fixed, vectors):
    total = fixed.encode(vectors[0]).integers.copy()
    for vector in vectors[1:]:
        add(total, fixed.encode(vector).integers, fixed.sum_bits)
    return fixed.decode(total)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.sampled_from([2, 4, 8, 16]), st.integers(1, 2 * BLOCK + 3), st.integers(0, 2**32))
def test_the_sum_of_what_was_written_is_exact(devices, bits, length, seed):
    rng = np.random.default_rng(seed)
    vectors = [rng.normal(0, 1, length).astype(np.float32) for _ in range(devices)]
    scales = rng.uniform(0.1, 2, -(-length // BLOCK)).astype(np.float32)
    fixed = FixedPoint(bits, devices, scales)
    encoded = [fixed.encode(vector) for vector in vectors]
    expected = sum(each.written.astype(np.float64) for each in encoded)
    np.testing.assert_allclose(summed(fixed, vectors), expected, rtol=1e-5, atol=1e-5)
    step = np.repeat(scales, BLOCK)[:length] / fixed.largest
    for vector, each in zip(vectors, encoded, strict=True):
        is_clipped = np.abs(vector) > np.repeat(scales, BLOCK)[:length] + step / 2
        assert np.all(np.abs(vector - each.written)[~is_clipped] <= 0.501 * step[~is_clipped] + 1e-7)
        assert each.clipped == is_clipped.sum()


@given(st.integers(1, 100), st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20))
def test_without_scales_sums_are_fine(devices, values):
    fixed = FixedPoint(8, devices)
    vector = np.array(values, np.float32)
    found = summed(fixed, [vector] * devices)
    np.testing.assert_allclose(found, devices * vector.astype(np.float64), rtol=0, atol=devices * EXACT_RESOLUTION)


def test_the_largest_of_all_devices_do_not_overflow():
    for devices in (1, 2, 3, 8, 9, 100):
        for scales in (np.ones(1, np.float32), None):
            fixed = FixedPoint(4, devices, scales)
            huge = np.full(3, 1e30, np.float32)
            assert fixed.encode(huge).clipped == 3
            assert (summed(fixed, [huge] * devices) > 0).all()
            assert (summed(fixed, [-huge] * devices) < 0).all()


@pytest.mark.parametrize(("devices", "bits"), [(1, 8), (2, 9), (8, 11), (9, 12), (16, 12), (100, 15)])
def test_masked_integers_have_bits_for_the_sum(devices, bits):
    assert FixedPoint(8, devices, np.ones(1, np.float32)).sum_bits == bits


@pytest.mark.parametrize(
    ("kind", "mask_bits", "devices", "bits", "sum_bits"),
    [
        ("gradient", 8, 2, 15, 16),
        ("gradient", 8, 8, 13, 16),
        ("gradient", 8, 256, 8, 16),
        ("gradient", 8, 257, 8, 17),
        ("gradient", 4, 8, 5, 8),
        ("gradient", 4, 100, 4, 11),
        ("delta", 8, 8, 8, 11),
        ("delta", 4, 8, 4, 7),
        ("curvature", 8, 8, 9, 12),
        ("curvature", 4, 8, 9, 12),
    ],
)
def test_gradients_have_twice_the_bits_in_the_sum(kind, mask_bits, devices, bits, sum_bits):
    """They have no error feedback with 8; and in whole bytes they are read and written fast."""
    layout = Layout((TensorSpec("w", (4,), kind=kind),), CodecChoice("int8").masked_policy(), 1 << 20)
    (piece,) = layout.slices(0)
    how = ContributionForm(layout, mask_bits, devices, {piece.key: np.ones(1, np.float32)}).of(piece)
    assert (how.bits, how.sum_bits) == (bits, sum_bits)


def test_scales_follow_what_is_exchanged_and_little_is_clipped():
    """Eight devices whose gradients shrink a hundredfold, and grow tenfold at once: what is clipped is sent later."""
    rng = np.random.default_rng(0)
    length, devices, scales = 3 * BLOCK, 8, Scales()
    size = np.repeat([1.0, 1e-3, 10.0], BLOCK)
    left = np.zeros((devices, length))
    moved, wanted = np.zeros(length), np.zeros(length)
    clipped = []
    for step in range(300):
        level = 0.97 ** min(step, 150) * (10 if step > 200 else 1)
        mean = rng.normal(0, 1, length)
        values = level * size * (mean + rng.normal(0, 2, (devices, length)))
        fixed = FixedPoint(8, devices, scales.current)
        encoded = [fixed.encode((own + rest).astype(np.float32)) for own, rest in zip(values, left, strict=True)]
        left = np.stack([own + rest - e.written for own, rest, e in zip(values, left, encoded, strict=True)])
        total = sum(e.written.astype(np.float64) for e in encoded)
        scales.update(total, devices, sum(e.clipped for e in encoded))
        clipped.append(sum(e.clipped for e in encoded) / values.size)
        moved, wanted = moved + total, wanted + values.sum(axis=0)
    assert np.median(clipped) < 2e-3
    assert np.mean(clipped[-50:]) < 5e-3
    np.testing.assert_allclose(moved + left.sum(axis=0), wanted, rtol=1e-3, atol=1e-2)
    error = np.abs(left).max(axis=0) / (level * size)
    assert np.median(error) < 0.2


def test_zeros_give_no_scale_and_a_block_of_zeros_a_small_one():
    scales = Scales()
    assert scales.current is None
    scales.update(np.zeros(BLOCK + 1), 2, 0)
    assert scales.current is None
    scales.update(np.r_[np.ones(BLOCK), 0.0], 2, 0)
    assert 0 < scales.current[1] < scales.current[0]
    fixed = FixedPoint(8, 2, np.array([1.0, 0.0], np.float32))
    assert not fixed.decode(fixed.encode(np.full(BLOCK + 1, 0.5, np.float32)).integers)[-1]


def test_long_vectors_are_written_as_short_ones():
    """They are rounded in pieces; the last block is cut."""
    rng = np.random.default_rng(0)
    length = 2 * 256 * BLOCK + 3 * BLOCK + 5
    values = rng.normal(0, 1, length).astype(np.float32)
    scales = rng.uniform(0.5, 4, -(-length // BLOCK)).astype(np.float32)
    whole = FixedPoint(13, 8, scales).encode(values)
    begins = range(0, length, BLOCK)
    parts = [FixedPoint(13, 8, scales[i : i + 1]).encode(values[b : b + BLOCK]) for i, b in enumerate(begins)]
    np.testing.assert_array_equal(whole.integers, np.concatenate([part.integers for part in parts]))
    np.testing.assert_array_equal(whole.written, np.concatenate([part.written for part in parts]))
    assert whole.clipped == sum(part.clipped for part in parts) > 0


def test_multiples_of_a_unit_are_added_exactly_in_few_bits():
    form = FixedPoint(24, 5, unit=1.0)
    values = np.random.default_rng(0).integers(-(2**23) + 1, 2**23, (5, 600)).astype(np.float32)
    total = np.zeros(600, np.uint64).astype(form.encode(values[0]).integers.dtype)
    for each in values:
        encoded = form.encode(each)
        assert not encoded.clipped
        add(total, encoded.integers, form.sum_bits)
    assert form.sum_bits < 32
    np.testing.assert_array_equal(form.decode(total), values.astype(np.float64).sum(axis=0))
