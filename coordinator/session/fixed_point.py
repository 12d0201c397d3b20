"""Sums that do not depend on the order of their addends: whole numbers of a fixed unit, added as integers.

After Demmel & Nguyen 2015, "Parallel Reproducible Summation" (https://doi.org/10.1109/TC.2014.2345391): units stand on
a grid that is the same for everybody, and each addend is rounded to one before it is added, which alone decides how.
There the bins of a sum are float64; here they are int64, which needs fewer operations and holds more.
"""

import math
import threading

import numpy as np
from edgenewton.v1.codecs import Float32Array
from numpy.typing import NDArray

_SPACING = 8
"""Units are 2 to the power of a multiple of this."""
_BITS = 48
"""An addend is less than 2^48 units: more than 32,000 of them fit into an int64."""
_BLOCK = 16_384
"""Elements that are worked on at once, so that what is between two operations stays in the cache."""


class FixedPointSum:
    """A weighted sum of float32 arrays of one length, of at most 2^15 of them.

    An array's unit follows from its largest magnitude M times its weight: at most 2^-40 of it. So an element of the
    mean is within 2^-41 of the largest M, and then rounded to float32: elements down to 2^-17 of the slice's largest
    are as exact as float32 can write them. Arrays of the same unit share an accumulator. Devices' batches are of
    similar scale, so there are seldom more than two; there are never more than float32 has exponents for, about 40.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._weight = 0
        self._accumulators: dict[int, _Accumulator] = {}

    def add(self, values: Float32Array, weight: int) -> None:
        """Add `weight` times `values`."""
        self._weight += weight
        largest = max(float(values.max()), -float(values.min())) if values.size else 0.0
        if largest == 0:
            return
        exponent = _unit(largest * weight)
        if exponent not in self._accumulators:
            self._accumulators[exponent] = _Accumulator(self._length, exponent)
        self._accumulators[exponent].add(values, weight)

    def mean(self) -> Float32Array:
        """Return the sum over the weights' sum."""
        mean = np.zeros(self._length, dtype=np.float32)
        # From the largest unit to the smallest: whose array came first does not matter here either.
        accumulators = [self._accumulators[unit] for unit in sorted(self._accumulators, reverse=True)]
        for begin in range(0, self._length, _BLOCK):
            block = slice(begin, min(begin + _BLOCK, self._length))
            total = _scratch.total[: block.stop - begin]
            total[:] = 0
            for accumulator in accumulators:
                total += accumulator.mean(block, self._weight)
            mean[block] = total
        return mean


class _Scratch(threading.local):
    """A thread's memory for what is between two operations: fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self.integers = np.empty(_BLOCK, dtype=np.int64)
        self.floats = np.empty(_BLOCK)
        self.total = np.empty(_BLOCK)


_scratch = _Scratch()


class _Accumulator:
    """The sum of addends in one unit."""

    def __init__(self, length: int, exponent: int) -> None:
        self._exponent = exponent
        self._sum = np.zeros(length, dtype=np.int64)
        self._offset = 0

    def add(self, values: Float32Array, weight: int) -> None:
        """Add `weight` times `values`, rounded to whole units."""
        # To x + 1.5 * 2^52 units, a float64's last bit is one unit. So the addition rounds, and the bits of the result,
        # read as an integer, are those of 1.5 * 2^52 units and as many more as x has units. The product is exact: 24
        # bits and 21. A weight's powers of two come free, with the unit.
        power = weight & -weight
        offset = np.float64(math.ldexp(1.5, 52 + self._exponent) / power)
        odd = np.float64(weight // power)
        self._offset += int(offset.view(np.int64))
        for begin in range(0, len(values), _BLOCK):
            part = values[begin : begin + _BLOCK]
            shifted = _scratch.floats[: len(part)]
            shifted[:] = part
            if odd != 1:
                shifted *= odd
            shifted += offset
            self._sum[begin : begin + len(part)] += shifted.view(np.int64)  # modulo 2^64

    def mean(self, block: slice, weight: int) -> NDArray[np.float64]:
        """Return a part of the sum over `weight`, in memory that the next call uses again."""
        length = block.stop - block.start
        offset = np.array(self._offset % 2**64, dtype=np.uint64).view(np.int64)
        units = np.subtract(self._sum[block], offset, out=_scratch.integers[:length])
        part = _scratch.floats[:length]
        part[:] = units
        part /= math.ldexp(weight, -self._exponent)
        return part


def _unit(magnitude: float) -> int:
    """Return the exponent of the unit for addends up to `magnitude`."""
    _, exponent = math.frexp(magnitude)
    return -_SPACING * ((_BITS - exponent) // _SPACING)
