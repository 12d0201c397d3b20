"""Keys that devices tell with their shares of the step before: used if the circle stays as it is, and else not."""

import pytest
from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.secure_aggregation.messages import step_keys_to_proto
from edgenewton.secure_aggregation.step_masks import StepMasks

from coordinator.session.keys_ahead import KeysAhead
from coordinator.session.masked_round import MaskedRound

NAMES = ["a", "b", "c"]
CHANNEL_KEYS = {name: name.encode() for name in NAMES}


def keys_of(device, step, circle=NAMES):
    secrets = {other: bytes(32) for other in circle if other != device}
    return step_keys_to_proto(device, StepMasks("s", step, device, secrets, least=2).keys)


@pytest.fixture
def ahead():
    """Step 5 follows step 4, to which all have contributed; keys of a and b are here."""
    before = MaskedRound("s", 4, NAMES)
    for name in NAMES:
        before.keys[name] = StepMasks("s", 4, name, {o: bytes(32) for o in NAMES if o != name}, least=2).keys
    before.close_keys()
    before.ask(NAMES)
    ahead = KeysAhead("s")
    ahead.expect(before, 5, CHANNEL_KEYS)
    for name in "ab":
        ahead.take(name, 5, keys_of(name, 5))
    return ahead


def test_a_round_of_the_same_circle_begins_with_the_keys_that_have_come(ahead):
    of = ahead.begin(5, CHANNEL_KEYS)
    assert (of.step, of.circle, set(of.keys)) == (5, NAMES, {"a", "b"})
    assert set(ahead.awaited) == {"c"}
    ahead.take("c", 5, keys_of("c", 5))
    assert set(of.keys) == set(NAMES)
    assert not ahead.awaited
    assert ahead.begin(5, CHANNEL_KEYS) is None


@pytest.mark.parametrize(
    ("step", "channel_keys"),
    [
        (6, CHANNEL_KEYS),
        (5, CHANNEL_KEYS | {"b": b"started again"}),
        (5, CHANNEL_KEYS | {"d": b"joined late"}),
        (5, {name: CHANNEL_KEYS[name] for name in "ab"}),
    ],
)
def test_of_another_circle_or_step_they_are_dropped(ahead, step, channel_keys):
    assert ahead.begin(step, channel_keys) is None
    ahead.take("c", 5, keys_of("c", 5))
    assert not ahead.awaited


def test_keys_of_strangers_and_other_steps_are_dropped(ahead):
    ahead.take("c", 6, keys_of("c", 6))
    ahead.take("d", 5, keys_of("d", 5, ["a", "b", "d"]))
    assert set(ahead.begin(5, CHANNEL_KEYS).keys) == {"a", "b"}


def test_who_is_waited_for_too_long_is_asked_once(ahead):
    ahead.begin(5, CHANNEL_KEYS)
    assert ahead.give_up() == {"c"}
    assert ahead.give_up() == set()


def test_keys_for_other_neighbours_are_refused(ahead):
    with pytest.raises(SecureAggregationError, match="device 'c' sent step keys for other neighbours"):
        ahead.take("c", 5, keys_of("c", 5, ["a", "c"]))


def test_nothing_is_ahead_before_the_first_step():
    ahead = KeysAhead("s")
    ahead.take("a", 0, keys_of("a", 0))
    assert ahead.begin(0, CHANNEL_KEYS) is None
