"""What is written is read as it was; what is too short, too long or impossible is refused by name."""

import numpy as np
import pytest
from edgenewton.secure_aggregation import messages as m
from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.secure_aggregation.graph import Graph
from edgenewton.secure_aggregation.shamir import random_secret
from edgenewton.secure_aggregation.step_masks import StepMasks
from edgenewton.v1 import exchange_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

NAMES = [f"d{number}" for number in range(9)]
SECRETS = {frozenset((one, other)): random_secret() for one in NAMES for other in NAMES if one < other}


@pytest.fixture(scope="module")
def masks():
    return {
        name: StepMasks("s", 1, name, {o: SECRETS[frozenset((name, o))] for o in NAMES if o != name}, least=2)
        for name in NAMES
    }


@given(st.sets(st.sampled_from(NAMES)))
def test_sets_are_read_as_they_were(members):
    data = m.set_to_bytes(NAMES, members)
    assert len(data) == 2
    assert m.set_from_bytes(NAMES, data) == sorted(members)


def test_a_set_of_another_circle_is_refused():
    with pytest.raises(ValueError, match="9 devices came in 1 bytes"):
        m.set_from_bytes(NAMES, b"1")


def test_step_keys_and_what_neighbours_need_are_read_as_they_were(masks):
    neighbours = Graph(NAMES, 1).neighbours("d3")
    keys = masks["d3"].keys
    message = m.step_keys_to_proto("d3", keys)
    assert len(message.SerializeToString()) < 8 * (80 + 32) + 32 + 80 + 20
    assert m.step_keys_from_proto("d3", neighbours, message) == keys
    announced = {other: masks[other].keys.for_neighbour("d3") for other in neighbours}
    assert m.announcements_from_bytes(neighbours, m.announcements_to_bytes(announced)) == announced
    message.boxes += b"x"
    with pytest.raises(SecureAggregationError, match="device 'd3' sent step keys for other neighbours"):
        m.step_keys_from_proto("d3", neighbours, message)
    with pytest.raises(ValueError, match="parts of 160 bytes"):
        m.announcements_from_bytes(neighbours, b"1")


def test_shares_are_read_as_they_were(masks):
    announced = {other: masks[other].keys.for_neighbour("d0") for other in NAMES[1:]}
    masks["d0"].take(NAMES, announced)
    revealed = masks["d0"].reveal(NAMES[:7])
    message = m.revealed_to_proto(b"p", revealed)
    assert m.revealed_from_proto("d0", NAMES[7:], NAMES[:7], message) == revealed
    with pytest.raises(SecureAggregationError, match="device 'd0' did not reveal just"):
        m.revealed_from_proto("d0", NAMES[6:], NAMES[:6], message)


@given(st.lists(st.floats(0, 2.0**99, width=32), min_size=1, max_size=5))
def test_scales_are_rounded_up_by_little(values):
    scales = np.array(values, np.float32)
    (found,) = m.scales_from_bytes([m.scales_to_bytes(scales)], [len(scales)])
    assert (found >= scales).all()
    assert (found <= scales * 1.0079 + 1e-38).all()


def test_scales_of_several_slices_are_read_apart():
    scales = [np.array(values, np.float32) for values in ([1.0, 2.0], [0.5], [4.0, 0.0, 8.0])]
    found = m.scales_from_bytes([m.scales_to_bytes(each) for each in scales], [2, 1, 3])
    assert [each.tolist() for each in found] == [each.tolist() for each in scales]
    assert m.scales_from_bytes([], []) == []


def test_scales_that_cannot_be_are_refused():
    assert m.scales_to_bytes(None) == b""
    with pytest.raises(ValueError, match="3 scales take 6 bytes; 2 came"):
        m.scales_from_bytes([b"1234", b"12"], [2, 3])
    with pytest.raises(ValueError, match="negative, or not finite"):
        m.scales_from_bytes([np.array([bits], "<u2").tobytes() for bits in (0x3F80, 0xFF80)], [1, 1])


def test_the_messages_fit_into_a_frame(masks):
    frame = pb.Frame(step=1, step_keys=m.step_keys_to_proto("d0", masks["d0"].keys))
    assert pb.Frame.FromString(frame.SerializeToString()) == frame
