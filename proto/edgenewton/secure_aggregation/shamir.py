"""Shamir's secret sharing (doi.org/10.1145/359168.359176): of n shares any t give the secret, and fewer tell nothing.

A secret is an integer below the prime 2^255 - 19, as are its shares; both are written in 32 bytes. The share with the
number i is the value at i of a polynomial of degree t - 1, whose value at 0 is the secret.
"""

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence

PRIME = 2**255 - 19
LENGTH = 32
"""Bytes of a secret, and of a share."""


class ShareError(ValueError):
    """Shares that cannot be combined; the text says why."""


def random_secret() -> bytes:
    """Return a secret at random: 32 bytes."""
    return secrets.randbelow(PRIME).to_bytes(LENGTH, "little")


def split(
    secret: bytes,
    numbers: Collection[int],
    threshold: int,
    *,
    random: Callable[[int], int] = secrets.randbelow,
    prime: int = PRIME,
) -> dict[int, bytes]:
    """Return a share for each number.

    Args:
        secret: 32 bytes, as `random_secret` gives them.
        numbers: of the shares; distinct, from 1 on.
        threshold: how many of the shares give the secret.
        random: gives an integer from 0 to below its argument.
        prime: for which sum and product are taken modulo.

    Raises:
        ShareError: the threshold is none for so many shares, a number is 0 or taken twice, the secret is no secret.

    """
    if not 1 <= threshold <= len(numbers):
        raise ShareError(f"{threshold} of {len(numbers)} shares cannot be made to give the secret")
    if len(set(numbers)) < len(numbers) or not all(0 < number < prime for number in numbers):
        raise ShareError(f"shares have distinct numbers from 1 on, not {sorted(numbers)}")
    value = _integer(secret, prime)
    polynomial = [value, *(random(prime) for _ in range(threshold - 1))]
    return {number: _at(polynomial, number, prime).to_bytes(LENGTH, "little") for number in numbers}


class Combiner:
    """Gives secrets from the shares with certain numbers; secrets that the same devices share have it in common.

    Args:
        numbers: of the shares, at least as many as the threshold; distinct.
        prime: that the shares were made with.

    Raises:
        ShareError: there are no numbers, or one is 0 or taken twice.

    """

    def __init__(self, numbers: Sequence[int], *, prime: int = PRIME) -> None:
        if not numbers or len(set(numbers)) < len(numbers) or not all(0 < number < prime for number in numbers):
            raise ShareError(f"shares have distinct numbers from 1 on, not {sorted(numbers)}")
        self._prime = prime
        self._factors = {number: _lagrange_at_zero(number, numbers, prime) for number in numbers}

    def combine(self, shares: Mapping[int, bytes]) -> bytes:
        """Return the secret of which these are the shares; of others, or of too few, 32 bytes that mean nothing.

        Raises:
            ShareError: a number has no share, or a share is none.

        """
        if shares.keys() != self._factors.keys():
            raise ShareError(f"wanted are the shares {sorted(self._factors)}, given are {sorted(shares)}")
        terms = (factor * _integer(shares[number], self._prime) for number, factor in self._factors.items())
        return (sum(terms) % self._prime).to_bytes(LENGTH, "little")


def _integer(data: bytes, prime: int) -> int:
    value = int.from_bytes(data, "little")
    if len(data) != LENGTH or value >= prime:
        raise ShareError(f"a secret, or a share of one, is an integer below {prime} in {LENGTH} bytes")
    return value


def _at(polynomial: Sequence[int], x: int, prime: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % prime
    return value


def _lagrange_at_zero(number: int, numbers: Sequence[int], prime: int) -> int:
    numerator = denominator = 1
    for other in numbers:
        if other != number:
            numerator = numerator * other % prime
            denominator = denominator * (other - number) % prime
    return numerator * pow(denominator, -1, prime) % prime
