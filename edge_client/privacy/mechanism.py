"""What makes a contribution private: a bound on its norm, a rounding to integers that keeps it, and a share of noise.

Distributed discrete Gaussian noise (Kairouz, Liu and Steinke 2021, https://arxiv.org/abs/2102.06387): all devices add
integers, so that it works under masks, and the sum of the shares is as private as one discrete Gaussian of the same
variance, but for a term of exp(-pi^2 deviation^2) times the elements: less than 1e-1000 for the deviations here.
"""

import math
import os

import numpy as np
import numpy.typing as npt

from edge_client.privacy.budget import PrivacyBudget
from edge_client.privacy.discrete_gaussian import MOST_DEVIATION, Integers, RandomBytes, discrete_gaussian, uniform

MOST_BITS = 24
"""Of a device's integers, sign included: those that float32 has exactly."""
_LEAST_DEVIATION = 64
_FINENESS = {"device": 8, "sample": 32}
"""The bound on the norm is so many times the square root of the elements: rounding adds less than 1 % to it, and to
what one sample of several is in it 3 %."""
_DEVIATIONS = 16
"""Noise beyond so many standard deviations does not occur: 1e-57."""
_SPREAD = 3.0
"""Steps of the grid that a norm may be above its mean after rounding."""
_TRIES = 8
_PARTS = 1 << 20
"""Steps in which a rounding's probability is told."""


class ClippedNoise:
    """Clips, rounds and noises what one device contributes; devices with the same budget take the same grid.

    Args:
        budget: gives the bound, the noise, and the devices.
        elements: of a contribution.
        random_bytes: where the randomness comes from.

    Raises:
        ValueError: the model is too large, or the noise, for integers of `MOST_BITS`.

    """

    def __init__(self, budget: PrivacyBudget, elements: int, random_bytes: RandomBytes = os.urandom) -> None:
        self._random_bytes = random_bytes
        self._unit = budget.unit
        self._units = budget.batch_size if budget.unit == "sample" else 1
        self._bound = budget.sensitivity * self._units
        share = budget.noise_multiplier / math.sqrt(budget.devices - 1)  # nobody is hidden by noise of its own
        fineness = _FINENESS[budget.unit]
        self.deviation = max(_LEAST_DEVIATION, math.ceil(fineness * math.sqrt(elements) * share))
        """Standard deviation of this device's noise, in steps of the grid."""
        self.sensitivity = self.deviation / share
        """What one unit changes the norm of a contribution by at most after it was rounded, in steps of the grid."""
        if self.deviation > MOST_DEVIATION or self.bits > MOST_BITS:
            raise ValueError(
                f"a noise of {budget.noise_multiplier:.3g} times the clip norm on {elements} elements does not fit "
                f"into integers of {MOST_BITS} bits: take a larger epsilon, fewer exchanges, or more devices"
                + (", or smaller batches" if self._units > 1 else "")
            )
        if budget.unit == "sample":
            # The same random numbers round a sum with a sample and the one without: no element differs by more than one
            # step more than before.
            bound = self.sensitivity - math.sqrt(elements)
        else:
            # Rounding to the one or the other side adds at most a quarter to the square of each element, in the mean;
            # the norm then spreads by half a step.
            bound = math.sqrt(self.sensitivity**2 - elements / 4) - _SPREAD
        self.grid = budget.sensitivity / bound
        """What one step stands for."""

    @property
    def bits(self) -> int:
        """Of a device's integers, sign included."""
        return math.ceil(self._units * self.sensitivity + _DEVIATIONS * self.deviation).bit_length() + 1

    def clipped(self, values: npt.NDArray[np.float32]) -> Integers:
        """Return values on the grid, where one unit changes their norm by at most `sensitivity`.

        With the unit "device" they are clipped here; with "sample" each sample's must have been before they were added
        up, and only rounding errors of the sum are clipped.

        Raises:
            ValueError: a value is NaN or infinite.

        """
        exact = values.astype(np.float64)
        norm = float(np.linalg.norm(exact))
        if not math.isfinite(norm):
            raise ValueError("the contribution is not finite")
        if norm > self._bound:
            exact *= self._bound / norm
        steps = exact / self.grid
        if self._unit == "sample":
            return self._rounded(steps)
        for _ in range(_TRIES):
            rounded = self._rounded(steps)
            if float(rounded @ rounded) <= self.sensitivity**2:
                return rounded
        truncated = np.trunc(steps).astype(np.int64)  # toward zero: no norm grows by that
        excess = math.sqrt(float(truncated @ truncated)) / self.sensitivity
        return truncated if excess <= 1 else np.trunc(steps / excess).astype(np.int64)

    def release(self, values: npt.NDArray[np.float32]) -> Integers:
        """Return values clipped, rounded, and with this device's share of the noise.

        Raises:
            ValueError: a value is NaN or infinite.

        """
        return self.clipped(values) + self.share(len(values))

    def share(self, elements: int) -> Integers:
        """Return this device's share of the noise alone."""
        return discrete_gaussian(self.deviation, elements, self._random_bytes)

    def _rounded(self, steps: npt.NDArray[np.float64]) -> Integers:
        """Round to the one or the other side, so that the mean stays."""
        below = np.floor(steps)
        draws = uniform(np.full(len(steps), _PARTS, np.int64), self._random_bytes)
        return below.astype(np.int64) + (draws < (steps - below) * _PARTS)
