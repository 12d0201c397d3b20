"""The noise's distribution, and the bound on what it is added to."""

import math

import numpy as np
import pytest
from scipy import stats

from edge_client.privacy import ClippedNoise, PrivacyBudget
from edge_client.privacy.discrete_gaussian import discrete_gaussian, uniform


def random_bytes_of(seed):
    return np.random.default_rng(seed).bytes


@pytest.mark.parametrize("deviation", [1, 2, 7, 64])
def test_samples_are_distributed_as_the_discrete_gaussian(deviation):
    samples = discrete_gaussian(deviation, 40_000, random_bytes_of(deviation))
    values = np.arange(-12 * deviation, 12 * deviation + 1)
    weights = np.exp(-(values**2) / (2.0 * deviation**2))
    expected = len(samples) * weights / weights.sum()
    observed = np.array([np.count_nonzero(samples == value) for value in values])
    assert observed.sum() == len(samples)
    is_likely = expected >= 10
    tails = [expected[~is_likely].sum()], [observed[~is_likely].sum()]
    expected, observed = np.append(expected[is_likely], tails[0]), np.append(observed[is_likely], tails[1])
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_the_systems_own_randomness_differs_each_time():
    assert not np.array_equal(discrete_gaussian(100, 50), discrete_gaussian(100, 50))


def test_uniform_integers_are_fair_for_bounds_that_are_no_power_of_two():
    drawn = uniform(np.full(30_000, 3, np.int64), random_bytes_of(0))
    assert stats.chisquare(np.bincount(drawn)).pvalue > 1e-4
    huge = uniform(np.full(1_000, 3 << 61, np.int64), random_bytes_of(1))
    assert huge.min() >= 0
    assert huge.max() < 3 << 61


@pytest.mark.parametrize("deviation", [0, 1 << 21])
def test_deviations_that_integers_cannot_have_are_refused(deviation):
    with pytest.raises(ValueError, match="deviation"):
        discrete_gaussian(deviation, 1)


def noise_of(elements, epsilon=4.0, devices=7, clip_norm=0.5, seed=0):
    budget = PrivacyBudget(epsilon, 1e-5, clip_norm, devices, exchanges=30)
    return budget, ClippedNoise(budget, elements, random_bytes_of(seed))


@pytest.mark.parametrize("elements", [1, 3, 100, 10_000])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.1, 1e3])
def test_no_contribution_is_above_the_bound_after_it_was_rounded(elements, scale):
    _, noise = noise_of(elements)
    values = (scale * np.random.default_rng(elements).normal(size=elements)).astype(np.float32)
    clipped = noise.clipped(values)
    assert math.sqrt(float(clipped @ clipped)) <= noise.sensitivity
    norm = float(np.linalg.norm(values.astype(np.float64)))
    wanted = values.astype(np.float64) * min(1.0, 0.5 / norm)
    assert np.abs(clipped - wanted / noise.grid).max() <= 1


def test_rounding_that_would_leave_the_bound_is_toward_zero():
    """With a source of randomness that always rounds away from zero, all tries fail."""
    budget, _ = noise_of(10_000)
    noise = ClippedNoise(budget, 10_000, lambda count: bytes(count))
    values = np.full(10_000, 0.5 / 100, np.float32)
    clipped = noise.clipped(values)
    assert float(clipped @ clipped) <= noise.sensitivity**2
    assert clipped.sum() > 0.8 * (values / noise.grid).sum()


def test_rounding_keeps_the_mean_of_moves_that_are_much_smaller_than_the_grid():
    _, noise = noise_of(50_000)
    values = np.full(50_000, 0.02 * noise.grid, np.float32)
    assert noise.clipped(values).mean() == pytest.approx(0.02, abs=0.003)


@pytest.mark.parametrize("devices", [2, 5, 50])
def test_the_noise_of_all_but_one_device_is_what_the_budget_says(devices):
    budget, noise = noise_of(20_000, devices=devices)
    shares = [noise.release(np.zeros(20_000, np.float32)) for _ in range(min(devices, 5) - 1)]
    deviation = np.concatenate(shares).std() * math.sqrt(devices - 1)
    assert deviation == pytest.approx(budget.noise_multiplier * noise.sensitivity, rel=0.02)
    assert noise.sensitivity * noise.grid == pytest.approx(budget.clip_norm, rel=0.02)


def test_a_contribution_is_in_the_mean_of_what_is_released():
    _, noise = noise_of(100, epsilon=500.0)
    values = np.linspace(-0.05, 0.05, 100, dtype=np.float32)
    released = np.mean([noise.release(values) for _ in range(200)], axis=0) * noise.grid
    assert np.corrcoef(released, values)[0, 1] > 0.9


def test_what_is_not_finite_is_refused():
    _, noise = noise_of(3)
    with pytest.raises(ValueError, match="not finite"):
        noise.release(np.array([1, np.nan, 0], np.float32))


def test_noise_that_integers_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="larger epsilon"):
        noise_of(100_000_000, epsilon=0.01, devices=2)
