"""Analytic recovery of a layer's inputs from what spans the same space: its gradient, or its Kronecker factor A.

The gradient of a linear layer's weight is the sum over the samples of g_i a_i^T, and that of its bias of g_i (Zhu and
Blaschko 2021, R-GAP, arXiv:2010.07733). So for one sample a row divided by the bias' element is the input itself; for
a batch the rows span the same space as the inputs, if the layer is wide enough (Dimitrov et al. 2024, SPEAR,
arXiv:2403.03945). A = mean of a_i a_i^T spans it, too. What lies in the space is found by what is known of inputs:
they are above a bound, and many elements are at it, as after a ReLU or in the background of an image. They are then
corners of the polytope of all vectors of the space above the bound, which linear programmes with random costs find.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

Matrix = npt.NDArray[np.float64]

_TINY = 1e-6
"""Singular values below this part of the largest are rounding."""
_TRIES = 12
"""Linear programmes for each input that is sought,"""
_MOST_TRIES = 400
"""and in all."""


def inputs_from_rows(
    rows: Matrix, count: int, *, low: float, high: float, unit: int | None, rng: np.random.Generator
) -> Matrix:
    """Return vectors of the space that the rows span which may be inputs, `[at most count, n]`, the likeliest first.

    Args:
        rows: `[m, n]`.
        count: how many inputs there are.
        low: no element of an input is below it.
        high: nor above this.
        unit: number of the element that is 1 in all inputs, that of the bias; None without one: then `low` is 0, and
            what is returned is known up to a factor.
        rng: for the costs.

    """
    basis = _basis(rows, count)
    if not len(basis):
        return np.zeros((0, rows.shape[1]))
    if len(basis) == 1:
        whole = basis[0, unit] if unit is not None else np.abs(basis[0]).max() * np.sign(basis[0].sum())
        return basis / whole if whole else np.zeros((0, rows.shape[1]))
    corners = _corners(basis, low, high, unit, min(_MOST_TRIES, _TRIES * len(basis)), rng)
    return _likeliest(corners, count, low, unit)


def inputs_from_factor(
    factor: Matrix, count: int, *, low: float, high: float, unit: int | None, rng: np.random.Generator
) -> Matrix:
    """Return what may be the inputs of a factor A, `[n, n]`: see `inputs_from_rows`.

    Of an input that is linearly independent of the others, a^T A^+ a is their number: that gives the scale.
    """
    found = inputs_from_rows(factor, count, low=low, high=high, unit=unit, rng=rng)
    if unit is None and len(found):
        inverse = np.linalg.pinv(factor, rcond=_TINY, hermitian=True)
        squares = np.einsum("ki,ij,kj->k", found, inverse, found)
        found = found * np.sqrt(count / np.maximum(squares, 1e-30))[:, None]
    return found


def _basis(rows: Matrix, count: int) -> Matrix:
    """Return an orthonormal basis of the space, of the `count` strongest directions at most."""
    _, strengths, directions = np.linalg.svd(rows, full_matrices=False)
    kept = min(count, int((strengths > _TINY * strengths[0]).sum()))
    basis: Matrix = directions[:kept]
    return basis


def _corners(
    basis: Matrix, low: float, high: float, unit: int | None, tries: int, rng: np.random.Generator
) -> list[Matrix]:
    size = basis.shape[1]
    bounded = np.arange(size) != (-1 if unit is None else unit)
    whole = basis[:, unit] if unit is not None else basis.mean(axis=1)
    columns = basis[:, bounded].T
    # First the least slack with which there is such a vector at all: it tells how noisy the space is.
    slack = _solve(
        np.append(np.zeros(len(basis)), 1.0),
        np.hstack([-columns, -np.ones((len(columns), 1))]),
        np.full(len(columns), -low),
        np.append(whole, 0.0),
    )
    if slack is None:
        return []
    margin = 2 * max(0.0, slack[-1]) + 1e-6
    above, bounds = -columns, np.full(len(columns), margin - low)
    if np.isfinite(high):
        above, bounds = np.vstack([above, columns]), np.append(bounds, np.full(len(columns), high + margin))
    found = (_solve(rng.normal(size=len(basis)), above, bounds, whole) for _ in range(tries))
    return [weights @ basis for weights in found if weights is not None]


def _solve(cost: Matrix, above: Matrix, bounds: Matrix, whole: Matrix) -> Matrix | None:
    done: Any = linprog(
        cost, A_ub=above, b_ub=bounds, A_eq=whole[None], b_eq=[1.0], bounds=(None, None), options={"time_limit": 5}
    )
    return done.x if done.status == 0 else None


def _likeliest(corners: list[Matrix], count: int, low: float, unit: int | None) -> Matrix:
    """Return the corners with most elements at the bound, of which none depends on the others."""

    def at_bound(corner: Matrix) -> int:
        bounded = corner if unit is None else np.delete(corner, unit)
        return int((bounded - low < 1e-3 * np.ptp(bounded)).sum())

    chosen: list[Matrix] = []
    for corner in sorted(corners, key=at_bound, reverse=True):
        if len(chosen) == count:
            break
        if chosen:
            known = np.stack(chosen)
            rest = corner - np.linalg.lstsq(known.T, corner, rcond=None)[0] @ known
            if np.linalg.norm(rest) < 0.02 * np.linalg.norm(corner):
                continue
        chosen.append(corner)
    return np.stack(chosen) if chosen else np.zeros((0, 0))
