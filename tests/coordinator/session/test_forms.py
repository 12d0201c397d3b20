"""In which form a session lets moves be written, on links of a known latency and speed."""

import math
import random
from itertools import pairwise

import pytest
from edgenewton.v1.codecs import CodecChoice
from edgenewton.v1.forms import Form
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.cadence import CHOICES, FIRST, Cadence, CadenceChoice, Pace
from coordinator.session.exchange_time import SETTLED, ExchangeTime

ELEMENTS = 1_000_000
SIZES = CodecChoice().form_sizes((TensorSpec("w", (ELEMENTS,), kind="delta"),))
BATCH_S = 0.02


class Fleet:
    """Three devices on links of one kind, and what their session chooses."""

    def __init__(
        self, latency_s, bytes_per_s, wavering=0.0, agreement=0.5, computed_s=0.0, round_trip_s=0.0, sizes=SIZES
    ):
        self.round_trip_s = round_trip_s
        self.latency_s, self.bytes_per_s, self.wavering = latency_s, bytes_per_s, wavering
        self.agreement, self.computed_s = agreement, computed_s
        self.choice = CadenceChoice(sizes)
        self.cadence = Cadence(FIRST, "", Form.INT4)
        self.chosen = [self.cadence]
        self._random = random.Random(0)
        self._before = Form.INT4

    def exchange_s(self, form):
        return self.latency_s + 2 * SIZES[form or Form.INT4] / self.bytes_per_s

    def step(self, times=1, extra=None):
        for _ in range(times):
            took = self.exchange_s(self._before) * (1 + self.wavering * self._random.uniform(-1, 1))
            self._before = self.cadence.form
            paces = {
                f"d{i}": Pace(BATCH_S, took, self.computed_s, self.agreement, self.cadence.form, self.round_trip_s)
                for i in range(3)
            }
            paces |= extra or {}
            waited = dict.fromkeys(paces, 0.0)
            self.cadence = self.choice.choose(self.cadence.batches, paces, waited, self.cadence.form)
            self.chosen.append(self.cadence)
        return self

    @property
    def changes(self):
        """How often the form has changed."""
        return sum(one.form is not other.form for one, other in pairwise(self.chosen))

    def best(self, form):
        """Return the least time that training takes in a form, up to a factor."""
        drift = max(0.02, 0.1 * (1 - self.agreement))
        factor = {Form.INT4: 1.0, Form.SPARSE1: 1.6}[form]
        return min(factor * (1 + drift * (h - 1)) * (BATCH_S + self.exchange_s(form) / h) for h in CHOICES)


def test_a_slow_link_and_a_large_model_make_moves_sparse():
    fleet = Fleet(0.05, 100_000).step(30)
    assert fleet.cadence.form is Form.SPARSE1
    assert fleet.changes == 1
    assert "an exchange in sparse1 1.6 s" in fleet.cadence.reason
    assert "in int4 it would take 10 s" in fleet.cadence.reason


def test_a_fast_link_keeps_moves_in_four_bits():
    fleet = Fleet(0.002, 1e9).step(30)
    assert {cadence.form for cadence in fleet.chosen} == {Form.INT4}
    assert "in sparse1 it would take" in fleet.cadence.reason


def test_nothing_changes_before_enough_exchanges_were_measured():
    fleet = Fleet(0.05, 10_000).step(SETTLED)
    assert fleet.chosen[1].reason == "nothing is measured yet"
    assert fleet.cadence.form is Form.INT4
    assert fleet.step(1).cadence.form is Form.SPARSE1


@pytest.mark.parametrize("agreement", [0.3, 0.9])
@pytest.mark.parametrize("bytes_per_s", [3e4, 3e5, 3e6, 3e7, 3e8])
@pytest.mark.parametrize("latency_s", [0.001, 0.1, 1.0])
def test_the_form_is_the_faster_one_unless_both_are_about_as_fast(latency_s, bytes_per_s, agreement):
    fleet = Fleet(latency_s, bytes_per_s, agreement=agreement).step(40)
    other = Form.SPARSE1 if fleet.cadence.form is Form.INT4 else Form.INT4
    assert fleet.best(fleet.cadence.form) <= fleet.best(other) / 0.8 + 1e-12
    assert fleet.changes <= 2  # there, and back where latency was taken for bytes


def test_a_round_trip_that_devices_measured_is_not_taken_for_bytes():
    assert Fleet(2.0, 1e8, round_trip_s=1.9).step(100).changes == 0
    assert Fleet(2.0, 1e5, round_trip_s=1.9).step(100).cadence.form is Form.SPARSE1


def test_latency_that_nobody_measured_is_not_taken_for_bytes_twice():
    """The other form is tried once: what it took is remembered."""
    fleet = Fleet(2.0, 1e8).step(200)
    assert fleet.cadence.form is Form.INT4
    assert fleet.changes == 2
    assert sum(cadence.form is Form.SPARSE1 for cadence in fleet.chosen) < 10


def test_what_devices_compute_is_not_taken_for_bytes():
    fleet = Fleet(0.0, 1e9, computed_s=2.0).step(40)
    assert fleet.changes == 0


@pytest.mark.parametrize("bytes_per_s", [1e5, 1e6, 2e6, 3e6, 5e6, 1e7, 1e8])
@pytest.mark.parametrize("latency_s", [0.001, 0.1, 1.0])
def test_forms_do_not_flap_where_exchanges_waver(latency_s, bytes_per_s):
    fleet = Fleet(latency_s, bytes_per_s, wavering=0.25).step(400)
    assert fleet.changes <= 3


def test_a_link_that_becomes_better_or_worse_is_followed():
    fleet = Fleet(0.01, 1e9).step(30)
    assert fleet.cadence.form is Form.INT4
    fleet.bytes_per_s = 1e5
    assert fleet.step(30).cadence.form is Form.SPARSE1
    fleet.bytes_per_s = 1e9
    assert fleet.step(30).cadence.form is Form.INT4
    assert fleet.changes == 2


def test_another_form_must_be_much_better_than_the_best_cadence_of_the_present_one():
    """One batch is too few here; with more, four bits are nearly as fast."""
    fleet = Fleet(0.0, 3.4e6)
    fleet.cadence = Cadence(1, "", Form.INT4)
    assert fleet.best(Form.SPARSE1) > 0.8 * fleet.best(Form.INT4)
    fleet.step(30)
    assert fleet.changes == 0
    assert fleet.cadence.batches >= 10


@pytest.mark.parametrize("form", Form)
def test_between_forms_that_are_about_as_fast_the_present_one_stays(form):
    fleet = Fleet(0.0, 7e6, wavering=0.1)
    assert 0.85 < fleet.best(Form.SPARSE1) / fleet.best(Form.INT4) < 1.15
    fleet.cadence = Cadence(10, "", form)
    fleet.chosen = [fleet.cadence]
    fleet.step(200)
    assert fleet.changes == 0


def test_where_there_is_one_form_none_is_told():
    fleet = Fleet(0.05, 10_000, sizes={})
    fleet.step(30)
    assert {cadence.form for cadence in fleet.chosen[1:]} == {None}
    assert "int4" not in fleet.cadence.reason
    assert fleet.cadence.batches > 10


def test_a_session_that_does_not_know_the_form_takes_that_of_its_devices():
    choice = CadenceChoice(SIZES)
    paces = {"b": Pace(0.1, 1.0, 0.0, 0.5, Form.SPARSE1), "a": Pace(0.1, 1.0, 0.0, 0.5)}
    assert choice.choose(10, paces, {}, None).form is Form.SPARSE1
    assert CadenceChoice(SIZES).choose(10, {"a": paces["a"]}, {}, None).form is Form.INT4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 1e300])
@pytest.mark.parametrize("place", [0, 1, 2, 3, 5])
def test_impossible_numbers_do_not_change_the_form(place, bad):
    numbers = [BATCH_S, 1e5, 0.0, 0.5, Form.INT4, 0.0]
    numbers[place] = bad
    fleet = Fleet(0.002, 1e9).step(30, extra={"liar": Pace(*numbers)})
    assert fleet.changes == 0


def test_agreement_is_that_of_whole_moves():
    """What few elements have in common says little of the moves that they are of."""
    fleet = Fleet(0.05, 100_000, agreement=0.8).step(20)
    assert fleet.cadence.form is Form.SPARSE1
    batches, fleet.agreement = fleet.cadence.batches, 0.1
    fleet.step(20)
    assert "disagree by 20%" in fleet.cadence.reason
    assert fleet.cadence.batches == batches


def test_two_measured_forms_tell_what_does_not_depend_on_bytes():
    time = ExchangeTime({Form.INT4: 1000, Form.SPARSE1: 100})
    for _ in range(10):
        time.measure(Form.INT4, 3.0, 0.0)
    assert time.seconds(Form.SPARSE1) == pytest.approx(0.3)  # as cheap as it can be
    for _ in range(10):
        time.measure(Form.SPARSE1, 2.1, 0.0)
    assert time.seconds(Form.INT4) == pytest.approx(3.0)
    for _ in range(20):
        time.measure(Form.SPARSE1, 2.2, 0.0)  # the link became slower
    assert time.seconds(Form.INT4) == pytest.approx(4.0, rel=1e-3)


def test_a_form_that_takes_longer_with_fewer_bytes_costs_no_bytes():
    time = ExchangeTime({Form.INT4: 1000, Form.SPARSE1: 100})
    for form, seconds in ((Form.INT4, 1.0), (Form.SPARSE1, 1.5)):
        for _ in range(5):
            time.measure(form, seconds, 0.0)
    assert time.seconds(Form.SPARSE1) == 1.5
    assert 1.0 <= time.seconds(Form.INT4) <= 6.0
