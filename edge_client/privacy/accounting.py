"""What releases with Gaussian noise, or discrete Gaussian noise, cost: concentrated differential privacy.

A release of sensitivity D with noise of standard deviation z D is rho-zCDP with rho = 1 / (2 z^2) (Bun and Steinke
2016, https://arxiv.org/abs/1605.02065, proposition 1.6); so is the discrete Gaussian (Canonne et al. 2020,
https://arxiv.org/abs/2004.00010, theorem 4). The rho of releases add up, however each depends on those before it.
"""

import math

_HIGHEST_ORDER = 1e7


def epsilon_of(rho: float, delta: float) -> float:
    """Return the epsilon at a delta of what is rho-zCDP.

    The least bound over all Renyi orders a, of Canonne et al. 2020 (https://arxiv.org/abs/2004.00010, proposition 12,
    for Renyi divergences rho a), as `dp-accounting` and Opacus have it for a list of orders.
    """
    if rho == 0:
        return 0.0

    def bound(log_excess: float) -> float:
        excess = math.exp(log_excess)
        order = 1 + excess
        return rho * order + math.log(excess / order) - (math.log(delta) + math.log(order)) / excess

    # The bound falls and then rises with the order: it is searched by golden sections.
    low, high = math.log(1e-6), math.log(_HIGHEST_ORDER)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(120):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if bound(left) < bound(right) else (left, high)
    return max(0.0, bound(low))


def rho_within(epsilon: float, delta: float) -> float:
    """Return the largest rho whose epsilon at a delta is no more than the given one."""
    low, high = 0.0, 1.0
    while epsilon_of(high, delta) < epsilon:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_of(middle, delta) <= epsilon else (low, middle)
    return low


def rho_of_release(noise_multiplier: float) -> float:
    """Return the rho of one release whose noise is so many times its sensitivity."""
    return 1 / (2 * noise_multiplier**2)
