"""Exact samples of the discrete Gaussian: integer arithmetic and the system's randomness, no floating point.

Algorithms 1 to 3 of Canonne, Kamath and Steinke 2020 (https://arxiv.org/abs/2004.00010), for many samples at once.
Noise from floating point has holes that tell what it was added to (Mironov 2012).
"""

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
RandomBytes = Callable[[int], bytes]
"""Gives so many random bytes."""

MOST_DEVIATION = 1 << 20
"""Largest standard deviation: beyond, products would not fit into 64 bits."""


def discrete_gaussian(deviation: int, count: int, random_bytes: RandomBytes = os.urandom) -> Integers:
    """Return samples with P(x) in proportion to exp(-x^2 / (2 deviation^2)), int64 `[count]`.

    Raises:
        ValueError: the deviation is not from 1 to `MOST_DEVIATION`.

    """
    if not 1 <= deviation <= MOST_DEVIATION:
        raise ValueError(f"the deviation is {deviation}: it must be from 1 to {MOST_DEVIATION}")
    samples = np.empty(count, np.int64)
    found = 0
    while found < count:
        candidates = _discrete_laplace(deviation, 2 * (count - found) + 16, random_bytes)
        # With a Laplace of scale t = deviation, x is kept with probability exp(-(|x| - t)^2 / (2 t^2)).
        kept = candidates[_happens((np.abs(candidates) - deviation) ** 2, 2 * deviation**2, random_bytes)]
        taken = kept[: count - found]
        samples[found : found + len(taken)] = taken
        found += len(taken)
    return samples


def uniform(bounds: Integers, random_bytes: RandomBytes = os.urandom) -> Integers:
    """Return integers from 0 to below each bound, all alike in probability."""
    result = np.empty(len(bounds), np.int64)
    left = np.arange(len(bounds))
    while len(left):
        drawn = (np.frombuffer(random_bytes(8 * len(left)), np.uint64) >> np.uint64(1)).astype(np.int64)
        bound = bounds[left]
        whole = np.iinfo(np.int64).max // bound * bound  # what is beyond would favour small results
        is_fair = drawn < whole
        result[left[is_fair]] = drawn[is_fair] % bound[is_fair]
        left = left[~is_fair]
    return result


def _discrete_laplace(scale: int, count: int, random_bytes: RandomBytes) -> Integers:
    """Return up to `count` samples with P(x) in proportion to exp(-|x| / scale)."""
    low = uniform(np.full(count, scale, np.int64), random_bytes)
    low = low[_happens(low, scale, random_bytes)]
    high = np.zeros(len(low), np.int64)
    going = np.arange(len(low))
    while len(going):
        going = going[_happens(np.full(len(going), 1, np.int64), 1, random_bytes)]
        high[going] += 1
    magnitude = low + scale * high
    is_negative = uniform(np.full(len(low), 2, np.int64), random_bytes) == 1
    is_twice = is_negative & (magnitude == 0)
    signed: Integers = np.where(is_negative, -magnitude, magnitude)[~is_twice]
    return signed


def _happens(numerators: Integers, denominator: int, random_bytes: RandomBytes) -> npt.NDArray[np.bool_]:
    """Return for each numerator whether something of probability exp(-numerator / denominator) happens."""
    happens = np.ones(len(numerators), np.bool_)
    whole = numerators // denominator
    going = np.flatnonzero(whole)
    while len(going):
        is_one = _happens_below_one(np.full(len(going), 1, np.int64), 1, random_bytes)
        happens[going[~is_one]] = False
        going = going[is_one]
        whole[going] -= 1
        going = going[whole[going] > 0]
    left = np.flatnonzero(happens)
    happens[left] = _happens_below_one(numerators[left] % denominator, denominator, random_bytes)
    return happens


def _happens_below_one(numerators: Integers, denominator: int, random_bytes: RandomBytes) -> npt.NDArray[np.bool_]:
    """Do so for numerators from 0 to the denominator."""
    runs = np.ones(len(numerators), np.int64)
    going = np.arange(len(numerators))
    while len(going):
        bounds = runs[going] * denominator
        going = going[uniform(bounds, random_bytes) < numerators[going]]
        runs[going] += 1
    is_odd: npt.NDArray[np.bool_] = runs % 2 == 1
    return is_odd
