"""One Kronecker factor of a layer's curvature: its running mean, and its inverse."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_client.curvature.inputs import part_width
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

    A matrix that is too wide is cut into parts along its diagonal, beyond which it is 0: `[blocks * parts, width,
    width]`, where the last part may be filled with zeros.

    Args:
        blocks: number of matrices.
        size: their rows.
        is_diagonal: whether only the diagonals are kept.
        widest: about how many rows a part has, if there are several; None for one.

    """

    def __init__(self, blocks: int, size: int, *, is_diagonal: bool = False, widest: int | None = None) -> None:
        self.size = size
        self.is_diagonal = is_diagonal
        parts = 1 if is_diagonal or widest is None else max(1, round(size / widest))
        self.width = part_width(size, parts)
        self.parts = part_width(size, self.width)
        """Of each matrix."""
        self.packed_shape = (blocks, size) if is_diagonal else (blocks * self.parts, packed_size(self.width))
        self.structure = "diagonals" if is_diagonal else "triangles"
        """What the elements stand for as they are exchanged: see `TensorSpec.structure`."""
        self.value = torch.zeros(0)
        """The running mean; empty before the first update."""
        self._blocks = blocks
        self._mean: Tensor | None = None
        """Its mean eigenvalue, once that was asked for."""

    def pack(self, value: Tensor) -> Tensor:
        """Return a batch's factor as it is exchanged, of shape `packed_shape`."""
        return value if self.is_diagonal else pack_symmetric(value)

    def root(self, packed: Tensor) -> Tensor:
        """Return the square root of a batch's factor, both as they are exchanged.

        Raises:
            CurvatureError: it is no such factor.

        """
        if self.is_diagonal:
            return packed.clamp(min=0).sqrt()
        values, vectors = eigen(unpack_symmetric(packed, self.width))
        return pack_symmetric((vectors * values.sqrt().unsqueeze(-2)) @ vectors.mT)

    def update(self, packed: Tensor, decay: float) -> None:
        """Move the running mean towards a batch's factor; `decay` is the weight of the past."""
        if self.is_diagonal or not self.value.numel():
            self.move(packed if self.is_diagonal else unpack_symmetric(packed, self.width), decay)
        else:
            self._set(unpack_symmetric(packed, self.width).lerp_(self.value, decay))  # no more memory

    def move(self, value: Tensor, decay: float) -> None:
        """Move the running mean towards a factor that is not packed."""
        self._set(value.clone() if not self.value.numel() else torch.lerp(value, self.value, decay))

    def cut(self, matrix: Tensor) -> Tensor:
        """Return the parts `[blocks * parts, width, width]` of whole matrices `[blocks, n, n]`."""
        if self.parts == 1:
            return matrix
        missing = self.parts * self.width - self.size
        tiled = F.pad(matrix, (0, missing, 0, missing)).view(-1, self.parts, self.width, self.parts, self.width)
        return tiled.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).flatten(0, 1)

    def joined(self, value: Tensor) -> Tensor:
        """Return whole matrices `[blocks, n, n]` of parts, of any number; diagonals as they are."""
        if value.dim() == 2 or len(value) == self._blocks:
            return value
        parts, width = len(value) // self._blocks, value.shape[-1]
        whole = value.new_zeros(self._blocks, parts, width, parts, width)
        whole.diagonal(dim1=1, dim2=3).copy_(value.view(self._blocks, parts, width, width).permute(0, 2, 3, 1))
        return whole.view(self._blocks, parts * width, parts * width)[:, : self.size, : self.size]

    @property
    def diagonal(self) -> Tensor:
        """The diagonal of each block, `[blocks, n]`."""
        if self.is_diagonal:
            return self.value
        return self.value.diagonal(dim1=-2, dim2=-1).reshape(self._blocks, -1)[:, : self.size]

    def mean_eigenvalue(self) -> Tensor:
        """Return the mean eigenvalue of each block, `[blocks]`, in float64: products of it must not overflow."""
        if self._mean is None:
            self._mean = precise(self.diagonal).mean(dim=-1)
        return self._mean

    def inverse(self, damping: Tensor) -> Tensor:
        """Return (factor + damping I)^-1, `[blocks * parts, width, width]` or its diagonal `[blocks, n]`.

        Args:
            damping: `[blocks]`, of any floating dtype.

        Raises:
            CurvatureError: it cannot be inverted.

        """
        damping = damping.to(self.value)
        if self.is_diagonal:
            return 1 / (self.value + damping.unsqueeze(-1))
        return damped_inverse(self.value, damping.repeat_interleave(self.parts) if self.parts > 1 else damping)

    def eigen(self) -> tuple[Tensor, Tensor | None]:
        """Return eigenvalues `[blocks, n]` and eigenvectors `[blocks, n, n]`; None stands for the unit matrix.

        Raises:
            CurvatureError: the decomposition fails.

        """
        return (self.value.clamp(min=0), None) if self.is_diagonal else eigen(self.joined(self.value))

    def state_dict(self) -> dict[str, Any]:
        """Return the running mean."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave, of a factor that may have been cut into other parts."""
        value = state["value"]
        is_cut_alike = self.is_diagonal or not value.numel() or value.shape[-1] == self.width
        self._set(value if is_cut_alike else self.cut(self.joined(value)))

    def _set(self, value: Tensor) -> None:
        self.value, self._mean = value, None


def multiply_right(matrix: Tensor, factor: Tensor | None) -> Tensor:
    """Return `matrix` `[blocks, out, in]` times a factor `[blocks, in, in]`, a diagonal `[blocks, in]`, or nothing.

    The factor may be in parts, `[blocks * parts, width, width]`.
    """
    if factor is None:
        return matrix
    if factor.dim() == matrix.dim() - 1:
        return matrix * factor.unsqueeze(-2)
    if len(factor) == len(matrix):
        return matrix @ factor
    parts = _parts(factor, *matrix.shape[::2])
    return torch.cat([matrix[..., of_part] @ part for of_part, part in parts], dim=-1)


def multiply_left(factor: Tensor | None, matrix: Tensor) -> Tensor:
    """Return a factor `[blocks, out, out]`, a diagonal `[blocks, out]`, or nothing, times `matrix`.

    The factor may be in parts, `[blocks * parts, width, width]`.
    """
    if factor is None:
        return matrix
    if factor.dim() == matrix.dim() - 1:
        return factor.unsqueeze(-1) * matrix
    if len(factor) == len(matrix):
        return factor @ matrix
    parts = _parts(factor, *matrix.shape[:2])
    return torch.cat([part @ matrix[:, of_part] for of_part, part in parts], dim=1)


def _parts(factor: Tensor, blocks: int, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the parts of a factor `[blocks * parts, width, width]`, without what the last one is filled with."""
    width = factor.shape[-1]
    by_part = factor.view(blocks, -1, width, width).unbind(1)
    for begin, part in zip(range(0, size, width), by_part, strict=True):
        there = min(width, size - begin)
        yield slice(begin, begin + there), part[:, :there, :there]
