"""What a session chooses from what its devices measure."""

import math

import pytest

from coordinator.session.cadence import CHOICES, Cadence, CadenceChoice, Pace


def settled(batch_s: float, exchange_s: float, agreement: float = 0.5, devices: int = 3, steps: int = 20) -> Cadence:
    """Return what is chosen once the same has been measured many times."""
    choice, cadence = CadenceChoice(), Cadence(1, "")
    for _ in range(steps):
        paces = {f"d{i}": Pace(batch_s, exchange_s, 0.0, agreement) for i in range(devices)}
        cadence = choice.choose(cadence.batches, paces, dict.fromkeys(paces, 0.0))
    return cadence


def test_nothing_changes_before_an_exchange_was_measured():
    first = CadenceChoice().choose(7, {"a": Pace(0.1, 5.0, 0.0, 0.5)}, {"a": 0.0})
    assert (first.batches, first.reason) == (7, "nothing is measured yet")
    assert CadenceChoice().choose(3, {}, {}).batches == 3


def test_where_exchanges_are_cheap_there_is_one_after_every_batch():
    assert settled(0.05, 0.0005).batches == 1


@pytest.mark.parametrize("agreement", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("exchange_s", [0.02, 0.2, 2.0, 20.0])
def test_the_choice_is_within_a_tenth_of_the_best(exchange_s, agreement):
    drift = max(0.02, 0.1 * (1 - agreement))
    times = {h: (1 + drift * (h - 1)) * (0.02 + exchange_s / h) for h in CHOICES}
    assert times[settled(0.02, exchange_s, agreement).batches] <= min(times.values()) / 0.9 + 1e-12


def test_slower_links_and_agreeing_devices_get_more_batches():
    by_link = [settled(0.02, exchange_s).batches for exchange_s in (0.001, 0.05, 0.5, 5.0)]
    assert by_link == sorted(by_link)
    assert by_link[0] < by_link[-1]
    assert settled(0.02, 0.5, agreement=0.9).batches > settled(0.02, 0.5, agreement=0.3).batches


def test_the_slowest_link_decides_and_waiting_for_others_is_no_link():
    choice = CadenceChoice()
    waited = {"far": 0.0, "near": 2.9}  # the one with the slow link comes last
    paces = {"far": Pace(0.01, 3.0, 0.0, 0.5), "near": Pace(0.01, 2.91, 0.0, 0.5)}
    choice.choose(1, paces, waited)
    cadence = choice.choose(1, paces, waited)
    assert cadence.batches > 5
    assert "slowest: 'far'" in cadence.reason
    assert "an exchange 3 s" in cadence.reason
    only_near = CadenceChoice()
    only_near.choose(1, {"near": paces["near"]}, waited)
    assert "an exchange 10 ms" in only_near.choose(1, {"near": paces["near"]}, waited).reason


def test_what_wavers_changes_nothing():
    choice, cadence, chosen = CadenceChoice(), Cadence(1, ""), []
    for step in range(40):
        exchange_s = 0.5 * (1.1 if step % 2 else 0.9)
        cadence = choice.choose(cadence.batches, {"a": Pace(0.02, exchange_s, 0.0, 0.5)}, {"a": 0.0})
        chosen.append(cadence.batches)
    assert len(set(chosen[10:])) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 1e300])
@pytest.mark.parametrize("place", range(4))
def test_impossible_numbers_are_left_out(place, bad):
    numbers = [0.02, 0.5, 0.0, 0.5]
    numbers[place] = bad
    choice = CadenceChoice()
    paces = {"liar": Pace(*numbers), "honest": Pace(0.02, 0.001, 0.0, 0.5)}
    choice.choose(1, paces, dict.fromkeys(paces, 0.0))
    assert choice.choose(1, paces, dict.fromkeys(paces, 0.0)).batches == 1
