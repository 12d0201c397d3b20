"""Layer inputs in the common format, with the two moments that estimators take of them.

`expand` and `reduce` are the two ways to treat a weight that is used several times within a sample (Eschenhagen et
al. 2023, https://arxiv.org/abs/2311.00636): `expand` counts each use as a sample of its own, `reduce` first sums the
uses (gradients) or averages them (inputs).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

WeightSharing = Literal["expand", "reduce"]


class Inputs(ABC):
    """The inputs of one layer in one batch."""

    @abstractmethod
    def second_moment(self, sharing: WeightSharing, parts: int = 1) -> Tensor:
        """Return the factor A: the mean over samples of a a^T.

        With `expand` it is summed over the shared positions (Grosse & Martens 2016, eq. 24), with `reduce` a is the
        mean over them (Eschenhagen et al. 2023, eq. 22).

        Args:
            sharing: how a shared weight counts.
            parts: blocks along the diagonal, beyond which nothing is computed: see `part_width`.

        Returns:
            `[blocks * parts, width, width]`, or the diagonal `[blocks, in]` for inputs that are one-hot.

        """

    @abstractmethod
    def mean(self) -> Tensor:
        """Return the mean over samples and shared positions, `[blocks, in]`."""

    @abstractmethod
    def along(self, directions: Tensor) -> Tensor:
        """Return each use's inner products with directions `[in, n]`, `[blocks, batch, shared, n]`.

        The bias's constant input has no part in them, and no row in the directions.
        """

    @abstractmethod
    def norm(self) -> float:
        """Return the square root of the sum of all inputs' squares."""

    @abstractmethod
    def regrouped(self, samples: int) -> "Inputs":
        """Return the inputs with `samples` samples: what was folded into the batch dimension becomes shared."""

    @property
    def formed(self) -> "Inputs":
        """The same, with nothing that is still to be formed."""
        return self

    def sampled(self, seed: int) -> "Inputs":  # noqa: ARG002
        """Return inputs whose second moment may be that of some uses, drawn by the seed, of which it is the mean."""
        return self


class DenseInputs(Inputs):
    """Inputs that are kept as they are: `rows` is `[blocks, batch, shared, features]`.

    With a bias a last input follows the features that is always 1; it is not stored.
    """

    def __init__(self, rows: Tensor, *, has_bias: bool) -> None:
        self.rows = rows
        self.has_bias = has_bias

    def second_moment(self, sharing: WeightSharing, parts: int = 1) -> Tensor:
        """Return the factor A, `[blocks * parts, width, width]`: see `Inputs.second_moment`."""
        rows = self.rows.mean(dim=2, keepdim=True) if sharing == "reduce" else self.rows
        _, samples, shared, features = rows.shape
        moment = _products_in_parts(rows, 1 / samples, features + self.has_bias, parts)
        if self.has_bias:
            of_last, one = moment[:, -1], features - (parts - 1) * moment.shape[-1]
            of_last[:, :one, one] = of_last[:, one, :one] = rows[..., features - one :].sum(dim=(1, 2)) / samples
            of_last[:, one, one] = shared
        return moment.flatten(0, 1)

    def mean(self) -> Tensor:
        """Return the mean over samples and shared positions, `[blocks, in]`."""
        mean = self.rows.mean(dim=(1, 2))
        return torch.cat([mean, mean.new_ones(len(mean), 1)], dim=1) if self.has_bias else mean

    def along(self, directions: Tensor) -> Tensor:
        """Return the uses' inner products with directions: see `Inputs.along`."""
        blocks, samples, shared, features = self.rows.shape
        if features == 1:
            return self.rows * directions
        return (as_uses(self.rows) @ directions).view(blocks, samples, shared, -1)

    def norm(self) -> float:
        """Return the norm of all inputs: see `Inputs.norm`."""
        ones = self.rows[..., 0].numel() if self.has_bias else 0
        return math.sqrt(float(self.rows.square().sum()) + ones)

    def regrouped(self, samples: int) -> "DenseInputs":
        """Return the inputs with `samples` samples: see `Inputs.regrouped`."""
        return DenseInputs(regroup(self.rows, samples), has_bias=self.has_bias)


class OneHotInputs(Inputs):
    """Inputs that pick one of `size` columns, such as those of an embedding; `indices` is `[batch, shared]`."""

    def __init__(self, indices: Tensor, size: int, dtype: torch.dtype) -> None:
        self.indices = indices
        self.size = size
        self._dtype = dtype

    def second_moment(self, sharing: WeightSharing, parts: int = 1) -> Tensor:  # noqa: ARG002
        """Return the diagonal of the factor A, `[1, in]`; with `expand` A has no other entries."""
        if sharing == "expand":
            return self._counts() / len(self.indices)
        per_sample = F.one_hot(self.indices, self.size).to(self._dtype).mean(dim=1)
        return per_sample.square().mean(dim=0).unsqueeze(0)

    def mean(self) -> Tensor:
        """Return how often each column is picked, `[1, in]`."""
        return self._counts() / max(self.indices.numel(), 1)

    def along(self, directions: Tensor) -> Tensor:
        """Return the uses' inner products with directions: see `Inputs.along`."""
        return directions[self.indices].unsqueeze(0)

    def norm(self) -> float:
        """Return the norm of all inputs: see `Inputs.norm`."""
        return math.sqrt(self.indices.numel())

    def regrouped(self, samples: int) -> "OneHotInputs":
        """Return the inputs with `samples` samples: see `Inputs.regrouped`."""
        return OneHotInputs(self.indices.reshape(samples, -1), self.size, self._dtype)

    def _counts(self) -> Tensor:
        return torch.bincount(self.indices.flatten(), minlength=self.size).to(self._dtype).unsqueeze(0)


def as_uses(rows: Tensor) -> Tensor:
    """Return rows `[blocks, batch, shared, features]` as `[blocks, batch * shared, features]`.

    Rows that stand feature by feature in memory, as those of a convolution, still do so afterwards: to copy them row by
    row would take much longer.
    """
    return rows.permute(0, 3, 1, 2).flatten(2).mT if rows.stride(-1) > 1 else rows.flatten(1, 2)


def products_of(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum over uses of a b^T, `[blocks, features of a, features of b]`.

    Args:
        a: `[blocks, batch, shared, features]`.
        b: the same, with other features.

    """
    if a.shape[-1] == b.shape[-1] == 1:  # of a normalisation, whose many blocks would be a matrix product each
        return (a * b).sum(dim=(1, 2)).unsqueeze(-1)
    return as_uses(a).mT @ as_uses(b)


def regroup(rows: Tensor, samples: int) -> Tensor:
    """Return rows `[blocks, samples * n, shared, features]` as `[blocks, samples, n * shared, features]`."""
    blocks, _, _, features = rows.shape
    return rows if rows.shape[1] == samples else rows.reshape(blocks, samples, -1, features)


def join_uses(uses: Sequence[Inputs]) -> Inputs:
    """Return the inputs of a module that was used several times in one forward: its uses share the weight."""
    if len(uses) == 1:
        return uses[0]
    first = uses[0]
    if isinstance(first, OneHotInputs):
        indices = [use.indices for use in uses if isinstance(use, OneHotInputs)]
        return OneHotInputs(torch.cat(indices, dim=1), first.size, first._dtype)
    dense = [formed for use in uses if isinstance(formed := use.formed, DenseInputs)]
    return DenseInputs(torch.cat([use.rows for use in dense], dim=2), has_bias=dense[0].has_bias)


def gradient_second_moment(g: Tensor, sharing: WeightSharing, parts: int = 1) -> Tensor:
    """Return the factor G `[blocks * parts, width, width]` of per-sample pre-activation gradients.

    With `expand` it is the mean over samples and shared positions of g g^T (Grosse & Martens 2016, eq. 25), with
    `reduce` the mean over samples, where g is the sum over the positions (Eschenhagen et al. 2023, eq. 22).

    Args:
        g: gradients of the pre-activations for each sample's own loss, `[blocks, batch, shared, out]`.
        sharing: how a shared weight counts.
        parts: blocks along the diagonal: see `part_width`.

    """
    rows = g.sum(dim=2, keepdim=True) if sharing == "reduce" else g
    _, samples, shared, features = rows.shape
    return _products_in_parts(rows, 1 / (samples * shared), features, parts).flatten(0, 1)


def part_width(size: int, parts: int) -> int:
    """Return the rows of each of so many parts of a matrix of `size` rows; the last one is filled with zeros."""
    return -(-size // parts)


def _products_in_parts(rows: Tensor, scale: float, size: int, parts: int) -> Tensor:
    """Return the scaled sum of a a^T over rows `[blocks, batch, shared, features]`, `[blocks, parts, width, width]`.

    It is that of a matrix of `size` rows, of which those beyond the features are left for the caller to set.
    """
    width, features = part_width(size, parts), rows.shape[-1]
    shape = (len(rows), parts, width, width)
    moment = rows.new_empty(shape) if parts == 1 else rows.new_zeros(shape)
    for part, begin in enumerate(range(0, features, width)):
        of_part = rows[..., begin : begin + width]
        there = of_part.shape[-1]
        _set_to_products(moment[:, part, :there, :there], of_part, scale)
    return moment


def _set_to_products(moment: Tensor, rows: Tensor, scale: float) -> None:
    """Set a part of a matrix to the scaled sum of a a^T over rows `[blocks, batch, shared, features]`."""
    if rows.shape[-1] == 1:
        torch.mul(products_of(rows, rows), scale, out=moment)
    else:
        # Their order does not matter here, so that of the memory is taken, in which nothing is copied.
        uses = as_uses(rows if rows.stride(1) >= rows.stride(2) else rows.transpose(1, 2))
        # With a weight of 0 it does not matter what was there.
        moment.baddbmm_(uses.mT, uses, beta=0, alpha=scale)
