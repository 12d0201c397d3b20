"""Accounting against the values of `dp-accounting` 0.6.0, Google's library of differential privacy."""

import pytest

from edge_client.privacy import PrivacyBudget, PrivacyBudgetError, PrivacyLedger
from edge_client.privacy.accounting import epsilon_of, rho_of_release, rho_within

# Noise multiplier, releases, delta; epsilon by RdpAccountant with 4,000 orders, and by PLDAccountant, which is exact.
KNOWN = [
    (1, 1, 1e-5, 4.728388, 4.377178),
    (1, 10, 1e-5, 19.047277, 17.856587),
    (0.5, 1, 1e-6, 11.688597, 10.997151),
    (4, 30, 1e-5, 6.813148, 6.325715),
    (20, 100, 1e-3, 1.546098, 1.352276),
    (2, 20, 1e-2, 8.071999, 7.024631),
    (8, 1000, 1e-7, 29.098546, 27.728392),
]


@pytest.mark.parametrize(("multiplier", "releases", "delta", "renyi", "exact"), KNOWN)
def test_epsilon_is_that_of_the_library_and_never_below_the_exact_one(multiplier, releases, delta, renyi, exact):
    ours = epsilon_of(releases * rho_of_release(multiplier), delta)
    assert ours == pytest.approx(renyi, rel=2e-5)
    assert ours > exact


@pytest.mark.parametrize(("multiplier", "releases", "delta", "renyi", "exact"), KNOWN)
def test_a_budget_takes_the_noise_that_lasts_for_its_exchanges(multiplier, releases, delta, renyi, exact):
    budget = PrivacyBudget(renyi, delta, 1.0, 2, releases)
    assert budget.noise_multiplier == pytest.approx(multiplier, rel=1e-4)


def test_epsilon_grows_with_what_is_spent_from_nothing():
    values = [epsilon_of(rho, 1e-5) for rho in (0, 1e-6, 1e-3, 0.1, 1, 10)]
    assert values == sorted(values)
    assert values[0] == 0
    assert epsilon_of(rho_within(2.0, 1e-5), 1e-5) <= 2.0


def test_a_ledger_stops_before_the_budget_is_spent_and_goes_on_counting():
    budget = PrivacyBudget(2.0, 1e-5, 1.0, 3, exchanges=5)
    first, second = PrivacyLedger(budget), PrivacyLedger(budget)
    for _ in range(3):
        first.charge()
    second.load_state_dict(first.state_dict())
    assert second.epsilon == first.epsilon
    second.charge()
    assert not second.is_spent
    second.charge()
    assert second.epsilon == pytest.approx(2.0, rel=1e-6)
    assert "5 exchanges took epsilon 2 of 2" in second.why_spent
    with pytest.raises(PrivacyBudgetError, match=r"would make it 2\.2"):
        second.charge()
    assert second.exchanges == 5


def test_a_larger_budget_goes_on_from_what_a_smaller_one_spent():
    small, large = (PrivacyLedger(PrivacyBudget(e, 1e-5, 1.0, 3, exchanges=2)) for e in (1.0, 4.0))
    for _ in range(2):
        small.charge()
    large.load_state_dict(small.state_dict())
    large.charge()
    assert large.is_spent  # a second one would be beyond epsilon 4, with what the small one spent


def test_a_state_that_cannot_be_is_refused():
    ledger = PrivacyLedger(PrivacyBudget(1.0, 1e-5, 1.0, 3, 2))
    with pytest.raises(ValueError, match="rho of -1"):
        ledger.load_state_dict({"rho": -1.0, "exchanges": 1})


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"delta": 1.0}, "delta"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"devices": 1}, "devices"),
        ({"exchanges": 0}, "exchanges"),
    ],
)
def test_impossible_options_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        PrivacyBudget(**{"epsilon": 1.0, "delta": 1e-5, "clip_norm": 1.0, "devices": 3, "exchanges": 2, **options})
