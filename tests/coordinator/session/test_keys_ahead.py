"""Keys that devices tell with their contributions to the step before: used if the circle stays as it is, else not."""

import pytest
from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.secure_aggregation.messages import step_keys_to_proto
from edgenewton.secure_aggregation.step_masks import StepMasks

from coordinator.session.keys_ahead import KeysAhead

NAMES = ["a", "b", "c"]
CHANNEL_KEYS = {name: name.encode() for name in NAMES}


def keys_of(device, step, circle=NAMES):
    secrets = {other: bytes(32) for other in circle if other != device}
    return step_keys_to_proto(device, StepMasks("s", step, device, secrets, least=2).keys)


@pytest.fixture
def ahead():
    return KeysAhead("s")


@pytest.fixture
def of(ahead):
    """The round of step 4, in which a and b have told keys for step 5."""
    of = ahead.begin(4, CHANNEL_KEYS, attempt=1)
    assert not of.keys
    for name in "ab":
        ahead.take(name, of, 5, keys_of(name, 5))
    return of


def test_a_round_of_the_same_circle_begins_with_the_keys_that_have_come(ahead, of):
    following = ahead.begin(5, CHANNEL_KEYS, attempt=1)
    assert (following.step, following.circle, set(following.keys)) == (5, NAMES, {"a", "b"})
    assert not ahead.begin(5, CHANNEL_KEYS, attempt=1).keys


@pytest.mark.parametrize(
    ("step", "channel_keys"),
    [
        (6, CHANNEL_KEYS),
        (5, CHANNEL_KEYS | {"b": b"started again"}),
        (5, CHANNEL_KEYS | {"d": b"joined late"}),
        (5, {name: CHANNEL_KEYS[name] for name in "ab"}),
    ],
)
def test_for_another_step_or_circle_they_are_dropped(ahead, of, step, channel_keys):
    following = ahead.begin(step, channel_keys, attempt=1)
    assert not following.keys
    assert following.circle == sorted(channel_keys)


def test_keys_of_strangers_are_dropped(ahead, of):
    ahead.take("d", of, 5, keys_of("d", 5, ["a", "b", "d"]))
    assert set(ahead.begin(5, CHANNEL_KEYS, attempt=1).keys) == {"a", "b"}


def test_the_last_keys_of_a_device_count(ahead, of):
    last = keys_of("a", 5)
    ahead.take("a", of, 5, last)
    assert ahead.begin(5, CHANNEL_KEYS, attempt=1).keys["a"].public == last.public


def test_keys_for_too_few_neighbours_are_refused(ahead, of):
    with pytest.raises(SecureAggregationError, match="device 'c' sent step keys for other neighbours"):
        ahead.take("c", of, 5, keys_of("c", 5, ["a", "c"]))
