"""Sketches of a model's weights: sums of all elements with random signs, equal on every machine for equal weights.

With signs s of +1 and -1 that are independent and as likely, the sum s.d over a difference d has the mean square
|d|^2 (Alon, Matias, Szegedy 1996, "The space complexity of approximating the frequency moments", section 2.2), and if d
has one element it is that element but for the sign. Elements are cut into blocks of `_BLOCK`; an element's sign is
that of its place in the block times that of the block, so that a sketch is a product of matrices. The signs come from a
counter and SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 16), in
integers, and so are those of every machine and release of torch.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from edgenewton.v1.sketch import MAX_GROUPS, PROJECTIONS, Sketch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 4096
_CHUNK = 64 * _BLOCK
"""Elements that are looked at together: 2 MiB in float64."""
_SMALLEST_PART = 4 * _BLOCK
"""A layer of no more elements is one group."""
_GOLDEN = 0x9E3779B97F4A7C15
_FLOAT32_ROUNDOFF = 2.0**-24
"""Means come in float32, whatever the weights' type."""


class Piece(NamedTuple):
    """Some elements of a parameter, in row-major order."""

    name: str
    start: int
    stop: int


@torch.no_grad()
def sketch_of(parameters: Mapping[str, Tensor], seed: int) -> Sketch:
    """Return the sketch of parameters by name, in the model's order.

    Args:
        parameters: real tensors of any type, shape and device.
        seed: chooses the signs.

    """
    signs = _Signs(seed)
    flat = {name: parameter.detach().reshape(-1) for name, parameter in parameters.items()}
    groups = grouped({name: len(elements) for name, elements in flat.items()})
    count = len(groups)
    projections, squares = torch.zeros(count, PROJECTIONS, dtype=torch.float64), [0.0] * count
    numbers = itertools.count()
    for group, pieces in enumerate(groups.values()):
        for name, start, stop in pieces:
            projected, square = _project(flat[name][start:stop], signs, next(numbers))
            projections[group] += projected
            squares[group] += square
    sizes = [sum(stop - start for _, start, stop in pieces) for pieces in groups.values()]
    mean_square = sum(squares) / max(1, sum(sizes))
    # Zeros, as a bias or an adapter begins with, move by what the model's other weights have for rounding.
    scales = [math.sqrt(max(square, size * mean_square)) for square, size in zip(squares, sizes, strict=True)]
    roundoffs = [max(_roundoff(flat[name]) for name, *_ in pieces) for pieces in groups.values()]
    return Sketch(tuple(groups), projections.numpy(), np.array(scales), np.array(roundoffs))


def grouped(sizes: Mapping[str, int]) -> dict[str, list[Piece]]:
    """Return what is in each group: a layer, a part of a large one, or layers that follow each other if there are many.

    Args:
        sizes: elements of each parameter, in the model's order.

    """
    layers = [(layer, list(names)) for layer, names in itertools.groupby(filter(sizes.get, sizes), key=_layer_of)]
    count = min(MAX_GROUPS, len(layers))
    bounds = [len(layers) * index // count for index in range(count + 1)] if count else []
    spare, total = MAX_GROUPS - count, sum(sizes.values())
    groups: dict[str, list[Piece]] = {}
    for first, last in itertools.pairwise(bounds):
        names = [name for _, of_layer in layers[first:last] for name in of_layer]
        title = " to ".join(dict.fromkeys(_short(layers[index][0], 40) for index in (first, last - 1)))
        size = sum(sizes[name] for name in names)
        parts = min(1 + spare * size // total, -(-size // _SMALLEST_PART))
        for part in range(parts):
            pieces = list(_pieces(names, sizes, size * part // parts, size * (part + 1) // parts))
            key = title if parts == 1 else f"{title} (part {part + 1} of {parts})"
            groups.setdefault(key, []).extend(pieces)
    return groups


def _pieces(names: Sequence[str], sizes: Mapping[str, int], first: int, last: int) -> Iterator[Piece]:
    """Yield what lies between two places of parameters that follow each other."""
    begin = 0
    for name in names:
        start, stop = max(first - begin, 0), min(last - begin, sizes[name])
        if start < stop:
            yield Piece(name, start, stop)
        begin += sizes[name]


class _Signs:
    """The signs of a sketch, as +1.0 and -1.0.

    Args:
        seed: chooses them.

    """

    def __init__(self, seed: int) -> None:
        self._key = _mixed(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64), 0)
        self.of_places = self._signs(self._key[0], 0, _BLOCK)
        """Shape [_BLOCK, PROJECTIONS]."""

    def of_blocks(self, piece: int, first: int, count: int) -> Tensor:
        """Return those of some blocks of the piece with a number, of shape [count, PROJECTIONS]."""
        (key,) = _mixed(self._key, piece + 1)
        return self._signs(key, first, count)

    @staticmethod
    def _signs(key: np.uint64, first: int, count: int) -> Tensor:
        bits = _mixed(np.arange(first, first + count, dtype=np.uint64), int(key))
        each = (bits[:, None] >> np.arange(63, 63 - PROJECTIONS, -1, dtype=np.uint64)) & np.uint64(1)
        return torch.from_numpy(1.0 - 2.0 * each.astype(np.float64))


def _mixed(counters: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Return SplitMix64's output at these places of the stream that begins at a key."""
    x = (counters + np.uint64(1)) * np.uint64(_GOLDEN) + np.uint64(key)  # wraps around: arrays do, without a warning
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _project(elements: Tensor, signs: _Signs, number: int) -> tuple[Tensor, float]:
    """Return the projections of a piece with a number and the square of its norm, in float64."""
    total, square = torch.zeros(PROJECTIONS, dtype=torch.float64), 0.0
    for start in range(0, len(elements), _CHUNK):
        # In two steps: not every device has float64.
        chunk = elements[start : start + _CHUNK].to("cpu").to(torch.float64)
        whole = len(chunk) // _BLOCK * _BLOCK
        rest = chunk[whole:]
        sums = [chunk[:whole].view(-1, _BLOCK) @ signs.of_places, (rest @ signs.of_places[: len(rest)])[None]]
        blocks = torch.cat(sums)
        total += (blocks * signs.of_blocks(number, start // _BLOCK, len(blocks))).sum(0)
        square += float(chunk @ chunk)
    return total, square


def _roundoff(tensor: Tensor) -> float:
    return max(_FLOAT32_ROUNDOFF, torch.finfo(tensor.dtype).eps / 2) if tensor.is_floating_point() else 0.5


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0] or name


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else f"...{name[3 - length :]}"
