"""Sums under masks equal plain sums, whoever drops out; and what is wrong is found, with the name of whose it is."""

from dataclasses import replace

import numpy as np
import pytest
from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.secure_aggregation.graph import FULL, Graph, degree_of, shares_needed
from edgenewton.secure_aggregation.key_agreement import public_key
from edgenewton.secure_aggregation.modular_integers import add, pack, packed_length, reduce, signed, unpack, word_of
from edgenewton.secure_aggregation.shamir import Combiner, ShareError, random_secret, split
from edgenewton.secure_aggregation.step_keys import Announcement, Shares, channel_secret
from edgenewton.secure_aggregation.step_masks import Revealed, StepMasks
from edgenewton.secure_aggregation.unmasking import Unmasking
from hypothesis import given, settings
from hypothesis import strategies as st


class Fleet:
    """Devices of one step, and what the coordinator carries between them."""

    def __init__(self, count, step=7, least=2):
        self.names = [f"d{number:03d}" for number in range(count)]
        private = {name: random_secret() for name in self.names}
        public = {name: public_key(secret) for name, secret in private.items()}
        self.step, self.graph = step, Graph(self.names, step)
        self.masks = {
            name: StepMasks(
                "s",
                step,
                name,
                {o: channel_secret(private[name], name, o, public[o]) for o in self.names if o != name},
                least=least,
            )
            for name in self.names
        }
        self.keys = {name: masks.keys for name, masks in self.masks.items()}

    def announce(self, maskers):
        """Tell those that mask of each other."""
        self.keys = {name: self.keys[name] for name in maskers}
        for name in maskers:
            self.keys[name].check(name, self.graph.neighbours(name))
            self.masks[name].take(maskers, self.for_device(name))

    def for_device(self, name):
        of = self.graph.neighbours(name)
        return {other: keys.for_neighbour(name) for other, keys in self.keys.items() if other in of}

    def masked_sum(self, vectors, bits):
        total = np.zeros(len(next(iter(vectors.values()))), word_of(bits))
        for name, vector in vectors.items():
            add(total, self.masks[name].mask(3, vector, bits), bits)
        return total

    def unmasking(self, contributed):
        return Unmasking("s", self.step, self.names, self.keys, contributed)


def vectors_of(names, length, bits, seed=0):
    rng = np.random.default_rng(seed)
    most = (1 << (bits - 1)) // len(names) - 1
    values = {name: rng.integers(-most, most, length, dtype=np.int64, endpoint=True) for name in names}
    return values, {name: reduce(vector, bits) for name, vector in values.items()}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_unmasked_sum_is_the_sum_of_those_that_contributed(data):
    count = data.draw(st.integers(2, 9), "devices")
    fleet = Fleet(count)
    needed = max(2, shares_needed(count))
    maskers = data.draw(st.sets(st.sampled_from(fleet.names), min_size=needed), "that announce")
    contributed = data.draw(st.sets(st.sampled_from(sorted(maskers)), min_size=needed), "that contribute")
    answering = data.draw(st.permutations(sorted(maskers)), "in the order in which they reveal")
    bits = data.draw(st.sampled_from([8, 11, 16, 23, 33, 64]), "bits")
    length = data.draw(st.integers(1, 40), "length")
    values, vectors = vectors_of(fleet.names, length, bits)
    fleet.announce(maskers)
    masked = fleet.masked_sum({name: vectors[name] for name in contributed}, bits)
    unmasking = fleet.unmasking(contributed)
    for name in answering:
        if not unmasking.is_ready:
            unmasking.take(name, fleet.masks[name].reveal(contributed))
    assert len(unmasking.revealed) == needed or len(unmasking.revealed) == shares_needed(count)
    unmasking.unmask(3, masked, bits)
    np.testing.assert_array_equal(signed(masked, bits), sum(values[name] for name in contributed))


@pytest.fixture(scope="module")
def many():
    """Take much: each device seals shares for all its neighbours."""
    return Fleet(FULL + 12)


def test_of_many_devices_each_masks_with_some_and_a_third_may_drop_out(many):
    assert degree_of(FULL) == FULL - 1
    degree = degree_of(len(many.names))
    assert 0.7 * len(many.names) < degree < len(many.names) - 1
    assert degree_of(1000) < 750
    neighbours = {name: many.graph.neighbours(name) for name in many.names}
    assert {len(of) for of in neighbours.values()} == {degree}
    assert all(name in neighbours[other] for name, of in neighbours.items() for other in of)
    assert neighbours["d000"] != Graph(many.names, 8).neighbours("d000")
    values, vectors = vectors_of(many.names, 5, 20)
    many.announce(many.names)
    contributed = [name for number, name in enumerate(many.names) if number % 3]
    masked = many.masked_sum({name: vectors[name] for name in contributed}, 20)
    unmasking = many.unmasking(contributed)
    for name in contributed:
        unmasking.take(name, many.masks[name].reveal(contributed))
    unmasking.unmask(3, masked, 20)
    np.testing.assert_array_equal(signed(masked, 20), sum(values[name] for name in contributed))


def test_what_a_device_sends_looks_random_without_the_masks():
    fleet = Fleet(3)
    fleet.announce(fleet.names)
    sent = fleet.masks["d000"].mask(0, np.zeros(1 << 16, np.uint16), 12)
    assert sent.max() < 1 << 12
    counts = np.bincount(sent >> 4, minlength=256)
    assert abs(counts - 256).max() < 6 * 16  # six standard deviations of a uniform draw
    other = fleet.masks["d000"].mask(1, np.zeros(1 << 16, np.uint16), 12)
    assert (sent == other).mean() < 0.01


@pytest.mark.parametrize("attack", ["box", "public", "digests", "seed digest", "other step", "other receiver"])
def test_keys_that_are_not_their_senders_are_found(attack):
    fleet = Fleet(4)
    wrong = Fleet(4, step=8)
    announced = fleet.for_device("d000")
    honest = announced["d002"]
    changed = {
        "box": replace(honest, box=bytes([honest.box[0] ^ 1]) + honest.box[1:]),
        "public": replace(honest, public=public_key(random_secret())),
        "digests": replace(honest, digests=fleet.keys["d002"].digests["d001"]),
        "seed digest": replace(honest, seed_digest=bytes(16)),
        "other step": wrong.keys["d002"].for_neighbour("d000"),
        "other receiver": fleet.keys["d002"].for_neighbour("d001"),
    }[attack]
    assert isinstance(changed, Announcement)
    with pytest.raises(SecureAggregationError, match="device 'd002'.*'d000' .*in step 7|in its name for 'd000'"):
        fleet.masks["d000"].take(fleet.names, {**announced, "d002": changed})
    assert fleet.masks["d000"].take(fleet.names, announced) is None


def test_a_device_reveals_one_kind_of_share_of_a_device_never_both():
    fleet = Fleet(6)
    fleet.announce(fleet.names)
    masks = fleet.masks["d000"]
    first = masks.reveal(fleet.names[:5])
    assert first == masks.reveal(fleet.names[:5])
    assert not first.of_keys.keys() & first.of_seeds.keys()
    with pytest.raises(SecureAggregationError, match="both kinds of shares of device 'd005' in step 7"):
        masks.reveal(fleet.names)


@pytest.mark.parametrize(
    ("contributed", "text"),
    [(["d000"], "sum of 1 devices"), (["d000", "d001", "d001x"], "do not mask"), ([], "sum of 0 devices")],
)
def test_a_device_does_not_unmask_what_is_no_sum(contributed, text):
    fleet = Fleet(4)
    fleet.announce(fleet.names)
    with pytest.raises(SecureAggregationError, match=text):
        fleet.masks["d000"].reveal(contributed)


def test_a_device_does_not_mask_among_too_few():
    fleet = Fleet(6, least=3)
    few = fleet.names[:3]
    with pytest.raises(SecureAggregationError, match="3 devices mask in step 7, too few"):
        fleet.announce(few)
    with pytest.raises(SecureAggregationError, match="did not pass on the keys"):
        fleet.masks["d000"].take(fleet.names, {})
    with pytest.raises(RuntimeError, match="no masks yet"):
        fleet.masks["d000"].mask(0, np.zeros(1, np.uint8), 8)


def test_no_mask_is_used_twice():
    fleet = Fleet(3)
    fleet.announce(fleet.names)
    fleet.masks["d000"].mask(0, np.zeros(1, np.uint8), 8)
    with pytest.raises(RuntimeError, match="vector 0 of step 7 was masked already"):
        fleet.masks["d000"].mask(0, np.ones(1, np.uint8), 8)
    with pytest.raises(SecureAggregationError, match="something else of step 7 than"):
        fleet.masks["d000"].take(fleet.names[:2], {})


def test_shares_that_are_tampered_with_missing_or_repeated_are_named():
    fleet = Fleet(4)
    fleet.announce(fleet.names)
    contributed = fleet.names[:3]
    unmasking = fleet.unmasking(contributed)
    honest = fleet.masks["d001"].reveal(contributed)
    tampered = replace(honest, of_seeds={**honest.of_seeds, "d002": bytes(32)})
    with pytest.raises(SecureAggregationError, match="device 'd001' revealed a share of device 'd002' in step 7"):
        unmasking.take("d001", tampered)
    with pytest.raises(SecureAggregationError, match="device 'd001' did not reveal just"):
        unmasking.take("d001", replace(honest, of_keys={}))
    with pytest.raises(SecureAggregationError, match="device 'd001' did not reveal just"):
        unmasking.take("d001", Revealed({**honest.of_keys, "d002": bytes(32)}, honest.of_seeds))
    assert not unmasking.revealed
    unmasking.take("d001", honest)
    with pytest.raises(SecureAggregationError, match="device 'd001' revealed its shares of step 7 twice"):
        unmasking.take("d001", honest)
    with pytest.raises(RuntimeError, match="too few"):
        unmasking.unmask(3, np.zeros(1, np.uint8), 8)


def test_whoever_gave_shares_of_another_secret_is_named():
    """Its shares are those that it told the digests of, but do not fit together."""
    fleet = Fleet(3)
    liar = fleet.masks["d001"]
    liar._seed = random_secret()
    shares = {"d000": random_secret(), "d001": random_secret(), "d002": random_secret()}
    real, boxes = dict(liar._held), {}
    for name, of_seed in shares.items():
        of_key = random_secret()
        given = Shares(of_key, of_seed)
        liar._held["d001"] = given if name == "d001" else real["d001"]
        if name != "d001":
            boxes[name] = liar._channels[name].seal("d001", name, liar.keys.public, liar.keys.seed_digest, given)
        liar.keys.digests[name] = given.digests
    liar._held["d001"] = Shares(random_secret(), shares["d001"])
    liar.keys = replace(liar.keys, boxes=boxes)
    fleet.keys["d001"] = liar.keys
    fleet.announce(fleet.names)
    unmasking = fleet.unmasking(fleet.names)
    for name in fleet.names[:2]:
        unmasking.take(name, fleet.masks[name].reveal(fleet.names))
    with pytest.raises(SecureAggregationError, match="device 'd001' gave the others shares .*not those of the secret"):
        unmasking.unmask(3, np.zeros(1, np.uint8), 8)


def test_step_keys_that_lack_something_are_refused():
    fleet = Fleet(4)
    keys, others = fleet.keys["d000"], fleet.graph.neighbours("d000")
    keys.check("d000", others)
    lacking = {name: box for name, box in keys.boxes.items() if name != "d003"}
    for wrong, text in (
        (replace(keys, boxes=lacking), "device 'd003'"),
        (replace(keys, public=b""), "wrong length"),
        (replace(keys, boxes={**keys.boxes, "d003": b"short"}), "wrong length"),
        (replace(keys, boxes={**keys.boxes, "x": b""}), "device 'x'"),
    ):
        with pytest.raises(SecureAggregationError, match=f"device 'd000' .*{text}"):
            wrong.check("d000", others)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 64), st.integers(0, 70), st.integers(0, 2**32))
def test_packed_integers_are_read_as_they_were(bits, length, seed):
    values = (
        np.random.default_rng(seed).integers(0, 1 << bits, length, np.uint64, endpoint=False)
        if bits < 64
        else (np.random.default_rng(seed).integers(0, 2**64 - 1, length, np.uint64, endpoint=True))
    )
    values = values.astype(word_of(bits))
    data = pack(values, bits)
    assert len(data) == packed_length(length, bits) <= (length * bits + 7) // 8 + 2
    np.testing.assert_array_equal(unpack(data, length, bits), values)
    assert data == written_bit_by_bit([int(value) for value in values], bits)


def written_bit_by_bit(values, bits):
    """What `pack` says that it writes, one integer after the other."""
    whole, left = divmod(bits, 8)
    if bits in (8, 16, 32, 64):
        return b"".join(value.to_bytes(whole, "little") for value in values)
    data = b"".join(bytes(value >> 8 * place & 255 for value in values) for place in range(whole))
    shift = 8 * whole
    for group in (size for size in (4, 2, 1) if left & size):
        packed = bytearray(-(-len(values) * group // 8))
        for place, value in enumerate(values):
            part, at = divmod(place, len(packed))
            packed[at] |= (value >> shift & (1 << group) - 1) << group * part
        data, shift = data + packed, shift + group
    return data


@given(st.integers(2, 64), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9))
def test_signed_integers_survive(bits, integers):
    half = 1 << (bits - 1)
    integers = [(value + half) % (2 * half) - half for value in integers]
    vector = np.array(integers, np.int64)
    assert signed(reduce(vector, bits), bits).tolist() == integers


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.data())
def test_any_so_many_shares_give_the_secret_and_fewer_do_not(holders, data):
    needed = data.draw(st.integers(1, holders))
    secret = random_secret()
    shares = split(secret, range(1, holders + 1), needed)
    some = data.draw(st.sets(st.sampled_from(range(1, holders + 1)), min_size=needed, max_size=needed))
    assert Combiner(sorted(some)).combine({n: shares[n] for n in some}) == secret
    if needed > 1:
        fewer = sorted(some)[1:]
        assert Combiner(fewer).combine({n: shares[n] for n in fewer}) != secret


def test_shares_that_cannot_be_are_refused():
    secret = random_secret()
    for numbers, needed in (([1, 2], 3), ([], 1), ([0, 1], 1)):
        with pytest.raises(ShareError):
            split(secret, numbers, needed)
    with pytest.raises(ShareError):
        split(b"\xff" * 32, [1], 1)
    for numbers in ([], [1, 1], [0]):
        with pytest.raises(ShareError):
            Combiner(numbers)
    with pytest.raises(ShareError, match=r"wanted are the shares \[1, 2\], given are \[1\]"):
        Combiner([1, 2]).combine({1: bytes(32)})


@pytest.mark.parametrize(("devices", "needed"), [(2, 2), (3, 2), (4, 3), (8, 6), (9, 6), (100, 67)])
def test_a_third_may_be_missing(devices, needed):
    assert shares_needed(devices) == needed
