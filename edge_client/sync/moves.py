"""How far all parameters moved, as one vector: so a codec weighs every element against every other.

A codec that keeps the largest elements keeps those of the whole model, wherever they are, and a small layer costs no
more than its share. Vectors are cut between layers where one would be too large to be worked on at once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.exchange import TensorKey
from edge_client.sync.parts import Part, difference

_MAX_ELEMENTS = 1 << 21
"""Of a vector, unless one part alone has more."""


class MoveVector(NamedTuple):
    """The moves of some parts, one after the other."""

    parts: Sequence[Part]
    kind: str = "delta"

    @property
    def key(self) -> TensorKey:
        """What identifies it in an exchange."""
        first, last = self.parts[0].name, self.parts[-1].name
        return self.kind, first if len(self.parts) == 1 else f"{first} to {last}"

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each part."""
        return [part.size for part in self.parts]

    def spec(self) -> TensorSpec:
        """Return what describes it to the exchange."""
        of_parts = tuple(part.spec(self.kind) for part in self.parts)
        return TensorSpec(self.key[1], (sum(self.sizes),), kind=self.kind, parts=of_parts if len(of_parts) > 1 else ())

    def gather(self, before: Mapping[Tensor, Tensor]) -> Tensor:
        """Return what the parameters were moved by since they were as in `before`, float32 `[size]`."""
        moves = [difference(part, before).reshape(-1).float() for part in self.parts]
        if len({move.device for move in moves}) > 1:  # of a model that several devices hold
            moves = [move.cpu() for move in moves]
        return torch.cat(moves)

    def scatter(self, vector: Tensor) -> dict[Tensor, Tensor]:
        """Undo `gather`: return what belongs to each parameter."""
        pieces = torch.split(vector, self.sizes)
        of_parameters: dict[Tensor, Tensor] = {}
        for part, piece in zip(self.parts, pieces, strict=True):
            of_parameters |= part.scatter(piece.view(part.shape))
        return of_parameters


def move_vectors(parts: Iterable[Part], kind: str = "delta") -> list[MoveVector]:
    """Return the vectors that parts make up, in their order."""
    return [MoveVector(group, kind) for group in _groups(parts)]


def _groups(parts: Iterable[Part]) -> Iterator[list[Part]]:
    group: list[Part] = []
    for part in parts:
        if group and sum(other.size for other in group) + part.size > _MAX_ELEMENTS:
            yield group
            group = []
        group.append(part)
    if group:
        yield group
