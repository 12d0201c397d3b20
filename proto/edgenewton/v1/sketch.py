"""A sketch of a model's weights: a few numbers for each group of parameters, by which two models can be compared.

Plain Python: who only makes sketches loads no protobuf.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
