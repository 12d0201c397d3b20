"""Coordinates in which a layer's curvature is the unit matrix, up to a constant.

With the curvature H = A ⊗ G, A^-1 = M_A M_A^T and G^-1 = M_G M_G^T, a gradient D becomes M_G^T D M_A, and a step
P = H^-1 D, or any change of the weights, becomes M_G^-1 P M_A^-T: the same matrix, whose squared norm is the step's
curvature <P, H P>. An error of it counts as much in every direction, in units of what the loss notices.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from edge_client.curvature.factor import multiply_left, multiply_right
from edge_client.curvature.linalg import lower_root


class Whitening(NamedTuple):
    """M_A and M_G: lower triangular `[blocks, n, n]`, or the diagonals `[blocks, n]` of diagonal matrices.

    The mean square of each one's diagonal, over all blocks, is 1. The scale of a whitening is arbitrary; so it stays
    comparable when the curvature changes.
    """

    A: Tensor
    G: Tensor

    @classmethod
    def of(cls, A: Tensor, G: Tensor) -> Self:
        """Return the whitening of two roots of any scale."""
        return cls(_normalised(A), _normalised(G))


def root_of(inverse: Tensor) -> Tensor:
    """Return M with M M^T = inverse, in the form of the inverse: `[blocks, n, n]`, or a diagonal `[blocks, n]`.

    Raises:
        CurvatureError: it has none.

    """
    return inverse.sqrt() if inverse.dim() == 2 else lower_root(inverse)


def root_in_basis(basis: Tensor | None, values: Tensor) -> Tensor:
    """Return M with M M^T = Q diag(values) Q^T, lower triangular `[blocks, n, n]`; a diagonal without a basis.

    Args:
        basis: Q, `[blocks, n, n]`; None for the unit matrix.
        values: above 0, `[blocks, n]`.

    """
    if basis is None:
        return values.sqrt()
    # The product itself has the square of the root's condition number; QR does without it.
    upper = torch.linalg.qr((basis * values.sqrt().unsqueeze(-2)).mT).R
    signs = upper.diagonal(dim1=-2, dim2=-1).sign()
    root: Tensor = (signs.unsqueeze(-1) * upper).mT
    return root


def whiten_gradient(gradient: Tensor, by: Whitening) -> Tensor:
    """Return M_G^T D M_A for a gradient D `[blocks, out, in]`."""
    return multiply_right(multiply_left(_transposed(by.G), gradient), by.A)


def restore_gradient(white: Tensor, by: Whitening) -> Tensor:
    """Undo `whiten_gradient`: return M_G^-T W M_A^-1."""
    return _solve_right(_solve_left(by.G, white, transposed=True), by.A, transposed=False)


def whiten_step(step: Tensor, by: Whitening) -> Tensor:
    """Return M_G^-1 P M_A^-T for a change P of the weights, `[blocks, out, in]`."""
    return _solve_right(_solve_left(by.G, step, transposed=False), by.A, transposed=True)


def restore_step(white: Tensor, by: Whitening) -> Tensor:
    """Undo `whiten_step`: return M_G W M_A^T."""
    return multiply_right(multiply_left(by.G, white), _transposed(by.A))


def _normalised(root: Tensor) -> Tensor:
    diagonal = root if root.dim() == 2 else root.diagonal(dim1=-2, dim2=-1)
    return root / diagonal.double().square().mean().sqrt().to(root.dtype)


def _transposed(root: Tensor) -> Tensor:
    return root if root.dim() == 2 else root.mT


def _solve_left(root: Tensor, matrix: Tensor, *, transposed: bool) -> Tensor:
    """Return M^-1 X, or M^-T X."""
    if root.dim() == 2:
        return matrix / root.unsqueeze(-1)
    solved: Tensor = torch.linalg.solve_triangular(root.mT if transposed else root, matrix, upper=transposed)
    return solved


def _solve_right(matrix: Tensor, root: Tensor, *, transposed: bool) -> Tensor:
    """Return X M^-1, or X M^-T."""
    if root.dim() == 2:
        return matrix / root.unsqueeze(-2)
    right = root.mT if transposed else root
    solved: Tensor = torch.linalg.solve_triangular(right, matrix, upper=transposed, left=False)
    return solved
