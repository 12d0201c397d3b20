"""What a coordinator that lies to the devices learns of one of them: nothing."""

import numpy as np
import pytest
from edgenewton.secure_aggregation.contribution_form import key_hint
from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.secure_aggregation.fixed_point import FixedPoint
from edgenewton.secure_aggregation.mask_stream import MaskKey
from edgenewton.secure_aggregation.messages import (
    announcements_to_bytes,
    scales_to_bytes,
    set_to_bytes,
    step_keys_from_proto,
)
from edgenewton.secure_aggregation.modular_integers import add, keep_bits, signed
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import CodecChoice
from edgenewton.v1.framing import Layout
from edgenewton.v1.tensor_spec import TensorSpec

from edge_client.exchange.remote.masked_once import MaskedOnce
from edge_client.exchange.remote.masking import Channels, Masking

STEP, STREAM = 5, 3
LAYOUT = Layout((TensorSpec("w", (4,)),), CodecChoice("int8").masked_policy(), 1 << 20)
SCALES = [scales_to_bytes(np.array([0.5], np.float32))]


class Liar:
    """A coordinator that tells each device what it likes."""

    def __init__(self, count=6, least=2):
        self.names = [f"d{number}" for number in range(count)]
        channels = {name: Channels("s", name) for name in self.names}
        self.channel_keys = [of.key for of in channels.values()]
        settings = pb.SecureAggregation(bits=8, least=least)
        self.devices = {name: Masking(channels[name], LAYOUT, settings) for name in self.names}

    def keys(self, circle, of=None, step=STEP):
        """Ask devices for keys; those that give none are left out."""
        wanted = pb.KeysWanted(circle=circle, channel_keys=self.channel_keys)
        answers = {name: self.devices[name].answer(pb.Frame(step=step, keys_wanted=wanted)) for name in of or circle}
        others = {name: [other for other in circle if other != name] for name in circle}
        return {
            name: step_keys_from_proto(name, others[name], answer.step_keys)
            for name, answer in answers.items()
            if answer.step_keys.public
        }

    def settle(self, circle, keys, own, scales=None, step=STEP):
        """Tell devices who masks: with `keys`, each of them by its own ones."""
        for name, mine in own.items():
            others = {other: of.for_neighbour(name) for other, of in keys.items() if other != name}
            settled = pb.Maskers(
                public=mine.public,
                maskers=set_to_bytes(circle, keys),
                announcements=announcements_to_bytes(others),
                scales=(scales or {}).get(name, SCALES),
            )
            self.devices[name].answer(pb.Frame(step=step, maskers=settled))

    def reveal(self, device, circle, own, contributed, step=STEP):
        wanted = pb.Unmask(public=own[device].public, contributed=set_to_bytes(circle, contributed))
        return self.devices[device].answer(pb.Frame(step=step, unmask=wanted))


@pytest.fixture
def liar():
    return Liar()


def test_who_passes_on_old_keys_in_another_round_has_no_second_secret_of_a_device(liar):
    """Shares of both its secrets would be had: of its seed in one round, of its key in one in which it has no part."""
    circle = liar.names
    first = liar.keys(circle)
    liar.settle(circle, first, first)
    second = liar.keys(circle, of=circle[:5])
    liar.settle(circle, {**second, "d5": first["d5"]}, second)
    assert liar.reveal("d0", circle, first, circle).revealed.of_seeds
    with pytest.raises(SecureAggregationError, match="asks to unmask two sums in step 5"):
        liar.reveal("d0", circle, second, circle[:5])
    assert liar.reveal("d0", circle, first, circle) == liar.reveal("d0", circle, first, circle)


def test_who_has_revealed_or_contributed_in_another_circle_has_no_more_keys_for_the_step(liar):
    circle = liar.names
    first = liar.keys(circle)
    liar.settle(circle, first, first)
    assert liar.devices["d0"].take_ready(STEP) is not None
    assert "d0" not in liar.keys(circle[:5])  # the difference of both sums would be d5's part
    assert liar.keys(circle).keys() == set(circle)  # the coordinator went down, and all are back
    liar.reveal("d1", circle, first, circle)
    assert liar.keys(circle).keys() == set(circle) - {"d1"}
    assert liar.keys(circle[:5], step=STEP + 1).keys() == set(circle[:5])


def test_keys_ahead_are_as_good_as_those_that_are_asked_for(liar):
    circle, device = liar.names, liar.devices["d0"]
    liar.keys(circle)  # it learns the channel keys
    ahead = step_keys_from_proto("d0", circle[1:], device.keys_ahead(STEP + 1, circle))
    keys = liar.keys(circle, of=circle[1:], step=STEP + 1) | {"d0": ahead}
    liar.settle(circle, keys, keys, step=STEP + 1)
    assert device.take_ready(STEP + 1).masks.keys == ahead
    liar.reveal("d0", circle, keys, circle, step=STEP + 1)
    assert device.keys_ahead(STEP + 1, circle) is None
    assert device.keys_ahead(STEP + 2, circle) is not None


def test_no_contribution_leaves_in_a_circle_that_was_agreed_on_before_it_left_in_another(liar):
    circle, other = liar.names, liar.names[:5]
    first, second = liar.keys(circle), liar.keys(other)
    liar.settle(circle, first, first)
    assert liar.devices["d0"].take_ready(STEP).masks.keys.public == first["d0"].public
    liar.settle(other, second, second)
    assert liar.devices["d0"].take_ready(STEP) is None
    assert liar.devices["d1"].take_ready(STEP) is not None


def test_who_is_told_twice_who_masks_contributes_once(liar):
    """As after a connection that broke: its stream sends the same bytes again."""
    circle = liar.names
    keys = liar.keys(circle)
    liar.settle(circle, keys, keys)
    ready = liar.devices["d0"].take_ready(STEP)
    liar.settle(circle, keys, keys)
    assert liar.devices["d0"].take_ready(STEP) is None
    assert key_hint(ready.masks.keys.public) == key_hint(keys["d0"].public)
    with pytest.raises(SecureAggregationError, match="something else of step 5 than it did before"):
        liar.settle(circle, keys, keys, scales={"d0": [scales_to_bytes(np.ones(1, np.float32))]})


@pytest.mark.parametrize("lies", [False, True])
def test_scales_by_which_all_but_one_would_send_zeros_give_no_sum(liar, lies):
    circle = liar.names
    keys = liar.keys(circle)
    huge = [scales_to_bytes(np.array([1e30], np.float32))]
    liar.settle(circle, keys, keys, scales=dict.fromkeys(circle[1:], huge) if lies else None)
    form, total = FixedPoint(8, 6, np.array([0.5], np.float32)), np.zeros(4, np.uint16)
    part = np.array([0.5, -0.5, 0.25, 0.0], np.float32)
    own = form.encode(part).integers
    for name in circle:
        sent = own if name == "d0" else np.zeros(4, np.uint16)
        add(total, liar.devices[name].take_ready(STEP).masks.mask(STREAM, sent, form.sum_bits), form.sum_bits)
    for name in circle:  # with all self masks taken out, as the shares allow
        seed = liar.devices[name]._rounds[keys[name].public][2]._seed
        total -= MaskKey(seed).draw(STREAM, 4, total.dtype)
    keep_bits(total, form.sum_bits)
    found = signed(total, form.sum_bits)
    assert (found == signed(own, form.sum_bits)).all() == (not lies)


def test_a_sum_is_of_two_thirds_at_least(liar):
    circle = liar.names
    keys = liar.keys(circle)
    liar.settle(circle, keys, keys)
    with pytest.raises(SecureAggregationError, match="sum of 3 devices in step 5"):
        liar.reveal("d0", circle, keys, circle[:3])
    assert liar.reveal("d0", circle, keys, circle[:4]) is not None


def test_what_is_remembered_of_steps_is_bounded_and_those_forgotten_are_past():
    once = MaskedOnce()
    for step in range(1000):
        once.contributed(step, ("a", "b"))
        once.revealed(step, b"k")
    assert len(once._circles) == len(once._revealed) == 64
    assert not any(once.may_reveal(step, b"other") or once.may_mask(step, ("a", "c")) for step in range(1000))
    assert once.may_mask(1000, ("a", "c"))
    assert once.may_reveal(999, b"k")


def test_a_channel_key_is_learnt_in_a_step_in_which_the_device_masks_no_more():
    one, other = Channels("s", "d0"), Channels("s", "d1")
    masking = Masking(one, LAYOUT, pb.SecureAggregation(bits=8, least=2))
    masking._once.contributed(STEP, ("d0", "d2"))
    wanted = pb.KeysWanted(circle=["d0", "d1"], channel_keys=[other.key])
    assert not masking.answer(pb.Frame(step=STEP, keys_wanted=wanted)).step_keys.public
    wanted.ClearField("channel_keys")
    assert masking.answer(pb.Frame(step=STEP + 1, keys_wanted=wanted)).step_keys.public
