"""A sketch of a model's weights: a few numbers for each group of parameters, by which two models can be compared."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgenewton.v1 import exchange_pb2 as pb

PROJECTIONS = 4
"""Numbers for each group, each the sum of its elements with random signs."""
MAX_GROUPS = 32
"""Most groups of a sketch; a model of more layers has several in one."""
MAX_NAME_LENGTH = 96
"""Characters of a group's name."""


@dataclass(frozen=True)
class Sketch:
    """Of each group of parameters a name, its projections, and what they are measured by.

    Of two models the projections differ by the same sums over the differences of their elements: the mean square of
    these is, in expectation, the square of the differences' norm, and it is exactly that where one element differs.
    """

    names: tuple[str, ...]
    """Of the groups: the layers in them."""
    projections: NDArray[np.float64]
    """Shape [groups, PROJECTIONS]; NaN or infinite where a weight is."""
    scales: NDArray[np.float64]
    """Shape [groups]: the norm of each group, or more where its elements are far smaller than the model's."""
    roundoffs: NDArray[np.float64]
    """Shape [groups]: the unit roundoff of the elements' type, e.g. 2^-24."""

    def to_proto(self) -> pb.Sketch:
        """Return the message."""
        rows = zip(self.names, self.projections.tolist(), self.scales.tolist(), self.roundoffs.tolist(), strict=True)
        return pb.Sketch(
            groups=[
                pb.GroupSketch(name=name, projections=projections, scale=scale, roundoff=roundoff)
                for name, projections, scale, roundoff in rows
            ]
        )

    @classmethod
    def from_proto(cls, message: pb.Sketch) -> "Sketch | None":
        """Return what a device sent; None if it sent none.

        Raises:
            ValueError: it is no sketch, or larger than one may be.

        """
        groups = message.groups
        if not groups:
            return None
        if len(groups) > MAX_GROUPS:
            raise ValueError(f"the sketch has {len(groups)} groups; at most {MAX_GROUPS} are accepted")
        for group in groups:
            if not 0 < len(group.name) <= MAX_NAME_LENGTH or not group.name.isprintable():
                raise ValueError(f"a group of the sketch has no name of 1 to {MAX_NAME_LENGTH} printable characters")
            if len(group.projections) != PROJECTIONS:
                raise ValueError(
                    f"the sketch has {len(group.projections)} projections of {group.name!r}; it must be {PROJECTIONS}"
                )
            if group.scale < 0 or not 0 < group.roundoff < 1:
                raise ValueError(f"the sketch of {group.name!r} has an impossible scale or roundoff")
        return cls(
            tuple(group.name for group in groups),
            np.array([group.projections for group in groups], np.float64),
            np.array([group.scale for group in groups], np.float64),
            np.array([group.roundoff for group in groups], np.float64),
        )
