"""One Kronecker factor of a layer's curvature: its running mean, and its inverse."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edge_client.curvature.linalg import (
    damped_inverse,
    eigen,
    pack_symmetric,
    packed_size,
    precise,
    unpack_symmetric,
)


class Factor:
    """A symmetric positive semi-definite matrix for each block, `[blocks, n, n]`, or only its diagonal `[blocks, n]`.

    Args:
        blocks: number of matrices.
        size: their rows.
        is_diagonal: whether only the diagonals are kept.

    """

    def __init__(self, blocks: int, size: int, *, is_diagonal: bool = False) -> None:
        self.size = size
        self.is_diagonal = is_diagonal
        self.packed_shape = (blocks, size if is_diagonal else packed_size(size))
        self.value = torch.zeros(0)
        """The running mean; empty before the first update."""
        self._mean: Tensor | None = None
        """Its mean eigenvalue, once that was asked for."""

    def pack(self, value: Tensor) -> Tensor:
        """Return a batch's factor as it is exchanged, of shape `packed_shape`."""
        return value if self.is_diagonal else pack_symmetric(value)

    def update(self, packed: Tensor, decay: float) -> None:
        """Move the running mean towards a batch's factor; `decay` is the weight of the past."""
        if self.is_diagonal or not self.value.numel():
            self.move(packed if self.is_diagonal else unpack_symmetric(packed, self.size), decay)
        else:
            self._set(unpack_symmetric(packed, self.size).lerp_(self.value, decay))  # no more memory

    def move(self, value: Tensor, decay: float) -> None:
        """Move the running mean towards a factor that is not packed."""
        self._set(value.clone() if not self.value.numel() else torch.lerp(value, self.value, decay))

    @property
    def diagonal(self) -> Tensor:
        """The diagonal of each block, `[blocks, n]`."""
        return self.value if self.is_diagonal else self.value.diagonal(dim1=-2, dim2=-1)

    def mean_eigenvalue(self) -> Tensor:
        """Return the mean eigenvalue of each block, `[blocks]`, in float64: products of it must not overflow."""
        if self._mean is None:
            self._mean = precise(self.diagonal).mean(dim=-1)
        return self._mean

    def inverse(self, damping: Tensor) -> Tensor:
        """Return (factor + damping I)^-1, `[blocks, n, n]` or its diagonal `[blocks, n]`.

        Args:
            damping: `[blocks]`, of any floating dtype.

        Raises:
            CurvatureError: it cannot be inverted.

        """
        damping = damping.to(self.value)
        if self.is_diagonal:
            return 1 / (self.value + damping.unsqueeze(-1))
        return damped_inverse(self.value, damping)

    def eigen(self) -> tuple[Tensor, Tensor | None]:
        """Return eigenvalues `[blocks, n]` and eigenvectors `[blocks, n, n]`; None stands for the unit matrix.

        Raises:
            CurvatureError: the decomposition fails.

        """
        return (self.value.clamp(min=0), None) if self.is_diagonal else eigen(self.value)

    def state_dict(self) -> dict[str, Any]:
        """Return the running mean."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        self._set(state["value"])

    def _set(self, value: Tensor) -> None:
        self.value, self._mean = value, None


def multiply_right(matrix: Tensor, factor: Tensor | None) -> Tensor:
    """Return `matrix` `[blocks, out, in]` times a factor `[blocks, in, in]`, a diagonal `[blocks, in]`, or nothing."""
    if factor is None:
        return matrix
    return matrix * factor.unsqueeze(-2) if factor.dim() == matrix.dim() - 1 else matrix @ factor


def multiply_left(factor: Tensor | None, matrix: Tensor) -> Tensor:
    """Return a factor `[blocks, out, out]`, a diagonal `[blocks, out]`, or nothing, times `matrix`."""
    if factor is None:
        return matrix
    return factor.unsqueeze(-1) * matrix if factor.dim() == matrix.dim() - 1 else factor @ matrix
