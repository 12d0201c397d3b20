"""What a robust rule is: it makes one vector of those that the devices sent in a step."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from edgenewton.v1.codecs import Float32Array

from coordinator.session.robust.vectors import Float64Array, Vector


@dataclass(frozen=True)
class Stack:
    """The vectors of a step, such as all gradients of each device, in the order of the devices' names."""

    devices: Sequence[str]
    samples: Sequence[int]
    vectors: Sequence[Vector]

    @property
    def weights(self) -> Float64Array:
        """What the devices count, `[n]`, in sum 1: as their samples, but none more than the median of all.

        So who claims many samples counts no more than half of the others do.
        """
        samples = np.asarray(self.samples, np.float64)
        bounded = np.minimum(samples, np.median(samples))
        found: Float64Array = bounded / bounded.sum()
        return found


@dataclass(frozen=True)
class Outcome:
    """What a rule made of a stack."""

    pieces: Sequence[Float32Array]
    unlike: Mapping[str, str] = field(default_factory=dict)
    """Devices whose vectors are unlike the others', and in which way; as a sentence without its subject."""
    distrusted: Collection[str] = ()
    """Those of them whose curvature is not to count either."""


class RobustRule(ABC):
    """Makes one vector of several. An object is for one kind of tensor of one session, and may remember steps."""

    copies: int = 1
    """How many vectors of each device it holds at most, those of the step among them: of N devices and a model of P
    elements it takes 4 N P bytes times this."""
    takes_sparse = True
    """Whether vectors may be zero nearly everywhere, as sparse codecs leave them."""

    @abstractmethod
    def combine(self, stack: Stack) -> Outcome:
        """Return what the vectors become; the same in whatever order they came.

        Args:
            stack: at least one vector, all of finite elements.

        """


def tolerated(devices: int, wanted: int | None) -> int:
    """Return how many bad devices a rule is to bear.

    Args:
        devices: how many there are.
        wanted: how many are asked for; None for a quarter of the devices. Never half of them or more.

    """
    return max(0, min(devices // 4 if wanted is None else wanted, (devices - 1) // 2))
