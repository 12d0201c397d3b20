"""The weighted mean: the same bits in whatever order contributions come, as exact as float32, and in bounded memory."""

import tracemalloc
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.session.aggregation import AGGREGATORS, HELD, Memory, WeightedMean
from coordinator.session.fixed_point import FixedPointSum
from coordinator.session.members import MAX_SAMPLES

LARGEST = float(np.float32(1e25))
"""What a device may send at most: see `edgenewton.v1.framing.MAX_MAGNITUDE`."""
HALF_ULP = Fraction(1, 2**24)
SMALLEST = Fraction(1, 2**149)
floats = st.floats(-LARGEST, LARGEST, width=32)
ordinary = st.floats(-1, 1, width=32)
weights = st.integers(1, MAX_SAMPLES) | st.sampled_from([1, 32, 50])


@st.composite
def contributions(draw, max_devices: int = 12):
    """Return arrays of one length with weights, of magnitudes near each other or far apart."""
    length = draw(st.integers(1, 5))
    elements = draw(st.sampled_from([floats, ordinary]))
    row = st.lists(elements, min_size=length, max_size=length)
    rows = draw(st.lists(st.tuples(row, weights), min_size=1, max_size=max_devices))
    return [(f"d{i}", np.array(values, np.float32), weight) for i, (values, weight) in enumerate(rows)]


def mean_of(given_in_order) -> np.ndarray:
    mean = WeightedMean()
    for device, values, weight in given_in_order:
        mean.add(device, values, weight)
    return mean.result()


def exact_mean(given_in_order) -> list[Fraction]:
    total = sum(weight for _, _, weight in given_in_order)
    columns = zip(*(values.tolist() for _, values, _ in given_in_order), strict=True)
    sizes = [weight for _, _, weight in given_in_order]
    return [sum(Fraction(x) * w for x, w in zip(column, sizes, strict=True)) / total for column in columns]


@given(st.data())
def test_any_order_gives_the_same_bytes(data):
    given_in_order = data.draw(contributions())
    shuffled = data.draw(st.permutations(given_in_order))
    assert mean_of(given_in_order).tobytes() == mean_of(shuffled).tobytes()


@pytest.mark.parametrize("devices", [3, 4, 5, 6])
def test_every_order_gives_the_same_bytes_where_float32_sums_differ(devices):
    rng = np.random.default_rng(devices)
    sent = [(f"d{i}", (rng.normal(size=500) * 10.0**i).astype(np.float32), 7 + i) for i in range(devices)]
    sums = {
        sum((values * np.float32(w) for _, values, w in order), np.float32(0)).tobytes() for order in permutations(sent)
    }
    assert len(sums) > 1
    assert len({mean_of(order).tobytes() for order in permutations(sent)}) == 1


@given(contributions())
def test_error_is_at_most_that_of_float32(sent):
    """Up to four are summed in float32; more of them are off by 2^-41 of the largest, and rounded once."""
    mean, exact = mean_of(sent), exact_mean(sent)
    total = sum(weight for _, _, weight in sent)
    for index, (got, wanted) in enumerate(zip(mean.tolist(), exact, strict=True)):
        if len(sent) <= HELD:
            magnitudes = sum(abs(Fraction(float(values[index]))) * w for _, values, w in sent) / total
            allowed = 2 * len(sent) * HALF_ULP * magnitudes + len(sent) * SMALLEST * MAX_SAMPLES
        else:
            largest = max(Fraction(float(np.abs(values).max())) for _, values, _ in sent)
            allowed = HALF_ULP * abs(wanted) * (1 + Fraction(1, 2**20)) + Fraction(1, 2**40) * largest + SMALLEST
        assert abs(Fraction(got) - wanted) <= allowed


@given(contributions(max_devices=8))
def test_fixed_point_is_within_an_ulp_of_float32_down_to_a_hundred_thousandth_of_the_largest(sent):
    total = FixedPointSum(len(sent[0][1]))
    for _, values, weight in sent:
        total.add(values, weight)
    largest = max(Fraction(float(np.abs(values).max())) for _, values, _ in sent)
    for got, wanted in zip(total.mean(), exact_mean(sent), strict=True):
        if abs(wanted) >= largest / 100_000 and largest > 1e-30:
            assert abs(Fraction(float(got)) - wanted) <= Fraction(float(np.spacing(np.abs(got))))


def test_contributions_that_cancel_leave_what_is_left_of_them_exactly():
    tiny = np.array([2.0**-20, 3.0], np.float32)
    big = np.array([1e6, -1e6], np.float32)
    sent = [("a", big, 1), ("b", tiny, 1), ("c", -big, 1), ("d", tiny, 1), ("e", tiny, 1), ("f", tiny, 1)]
    assert np.array_equal(mean_of(sent), (4 * tiny.astype(np.float64) / 6).astype(np.float32))


def test_ten_thousand_devices_with_the_largest_values_and_batches_do_not_overflow():
    values = np.array([LARGEST, -LARGEST, 1.0], np.float32)
    total = FixedPointSum(3)
    for _ in range(10_000):
        total.add(values, MAX_SAMPLES - 1)
    assert np.array_equal(total.mean()[:2], values[:2])


@given(values=st.lists(floats, min_size=1, max_size=5), weight=weights, devices=st.integers(1, 9))
def test_the_mean_of_equal_contributions_is_what_each_of_them_is(values, weight, devices):
    sent = np.array(values, np.float32)
    mean = mean_of([(f"d{i}", sent, weight) for i in range(devices)])
    if devices == 1:
        assert mean.tobytes() == sent.tobytes()
    np.testing.assert_allclose(mean, sent, rtol=3e-7, atol=2.0**-40 * float(np.abs(sent).max()))


def test_one_device_alone_costs_no_copy():
    values = np.arange(5, dtype=np.float32)
    assert mean_of([("a", values, 3)]) is values


@pytest.mark.parametrize("devices", [2, 5])
def test_contributions_are_not_changed(devices):
    sent = [(f"d{i}", np.full(20_000, i + 0.1, np.float32), 3 + i) for i in range(devices)]
    copies = [values.copy() for _, values, _ in sent]
    mean_of(sent)
    assert all(np.array_equal(values, copy) for (_, values, _), copy in zip(sent, copies, strict=True))


@pytest.mark.parametrize("devices", [1, 4, 5, 9])
def test_empty_slices_and_slices_of_zeros_have_a_mean(devices):
    assert mean_of([(f"d{i}", np.empty(0, np.float32), 1) for i in range(devices)]).shape == (0,)
    assert np.array_equal(mean_of([(f"d{i}", np.zeros(3, np.float32), 1) for i in range(devices)]), np.zeros(3))


@given(st.data())
def test_weights_that_are_limited_when_all_are_in_count_as_if_they_had_been_before(data):
    sent = data.draw(contributions())
    most = data.draw(weights)
    means = set()
    for order in (sent, data.draw(st.permutations(sent))):
        mean = WeightedMean(is_limited_later=True)
        for device, values, weight in order:
            mean.add(device, values, weight)
        means.add(mean.result(most).tobytes())
    assert len(means) == 1
    got = np.frombuffer(means.pop(), np.float32)
    limited = [(device, values, min(weight, most)) for device, values, weight in sent]
    largest = max(float(np.abs(values).max()) for _, values, _ in sent)
    np.testing.assert_allclose(got, mean_of(limited), rtol=1e-5, atol=2.0**-20 * largest)


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="the mean of no contributions does not exist"):
        WeightedMean().result()


def test_memory_does_not_grow_with_the_number_of_devices():
    """Each device's contribution comes in memory of its own; at most four of them are kept."""
    length, peaks = 1 << 18, {}
    for devices in (8, 40):
        tracemalloc.start()
        mean = WeightedMean()
        for index in range(devices):
            mean.add(f"d{index}", np.full(length, 0.1, np.float32), 32)
        mean.result()
        _, peaks[devices] = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert WeightedMean.memory is Memory.PER_MODEL
    assert peaks[40] < 1.1 * peaks[8]
    assert peaks[40] < 8 * 4 * length


@pytest.mark.parametrize("name", AGGREGATORS)
@given(st.data())
@settings(max_examples=30)
def test_every_rule_is_independent_of_the_order(name, data):
    sent = data.draw(contributions())
    results = set()
    for order in (sent, data.draw(st.permutations(sent))):
        aggregator = AGGREGATORS[name]()
        for device, values, weight in order:
            aggregator.add(device, values, weight)
        results.add(aggregator.result().tobytes())
    assert len(results) == 1
