from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.training.batches import BatchOrder


@given(samples=st.integers(1, 40), batch_size=st.integers(1, 60), seed=st.integers(0, 1000))
def test_batches_are_of_equal_size_and_every_pass_sees_every_sample_once(samples, batch_size, seed):
    order = BatchOrder(samples, batch_size, seed)
    drawn = [index for step in range(10) for index in order.indices(step)]
    assert len(drawn) == 10 * min(batch_size, samples)
    for begin in range(0, len(drawn) - samples + 1, samples):
        assert Counter(drawn[begin : begin + samples]) == Counter(range(samples))


@given(samples=st.integers(1, 40), batch_size=st.integers(1, 60), seed=st.integers(0, 1000))
def test_where_the_rest_is_dropped_no_sample_is_twice_in_a_pass(samples, batch_size, seed):
    order = BatchOrder(samples, batch_size, seed, drops_rest=True)
    batches = max(1, samples // batch_size)
    for number in range(5):
        drawn = [index for step in range(number * batches, (number + 1) * batches) for index in order.indices(step)]
        assert len(set(drawn)) == len(drawn) == batches * min(batch_size, samples)


def test_any_step_can_be_the_first():
    whole = BatchOrder(10, 4, seed=1)
    before = [whole.indices(step).tolist() for step in range(8)]
    assert BatchOrder(10, 4, seed=1).indices(7).tolist() == before[7]


def test_a_device_without_samples_is_refused():
    with pytest.raises(ValueError, match="no training samples"):
        BatchOrder(0, 4, seed=0)
