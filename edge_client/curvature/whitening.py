"""Coordinates in which a layer's curvature is the unit matrix, up to a constant.

With the curvature H = A ⊗ G, A^-1 = M_A M_A^T and G^-1 = M_G M_G^T, a gradient D becomes M_G^T D M_A, whose squared
norm is the curvature <P, H P> of the step P = H^-1 D. An error of it counts as much in every direction, in units of
what the loss notices.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from edge_client.curvature.factor import multiply_left, multiply_right
from edge_client.curvature.linalg import lower_root, precise


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
    return multiply_right(multiply_left(by.G if by.G.dim() == 2 else by.G.mT, gradient), by.A)


def restore_gradient(white: Tensor, by: Whitening) -> Tensor:
    """Undo `whiten_gradient`: return M_G^-T W M_A^-1."""
    is_diagonal = by.G.dim() == 2
    left = white / by.G.unsqueeze(-1) if is_diagonal else torch.linalg.solve_triangular(by.G.mT, white, upper=True)
    if by.A.dim() == 2:
        return left / by.A.unsqueeze(-2)
    restored: Tensor = torch.linalg.solve_triangular(by.A, left, upper=False, left=False)
    return restored


def _normalised(root: Tensor) -> Tensor:
    diagonal = root if root.dim() == 2 else root.diagonal(dim1=-2, dim2=-1)
    return root / precise(diagonal).square().mean().sqrt().to(root)
