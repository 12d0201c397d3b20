"""What the benchmark knows of a method: what is searched, and a run that trains from one exchange to the next."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import nn

from benchmarks.convergence.learning_tasks import LearningTask

Family = Literal["ours", "baseline"]
Options = Mapping[str, float]
"""What is searched, by name."""


class DivergedError(ArithmeticError):
    """The training has left the finite numbers."""


class Round(NamedTuple):
    """What a round cost a device."""

    batches: int
    up: float
    """Bytes that a device sent: the mean over the devices."""
    down: float
    """Bytes that it received."""

    @property
    def each_way(self) -> float:
        """The mean of both directions."""
        return (self.up + self.down) / 2


class Run(ABC):
    """One training of one model by one method."""

    @abstractmethod
    def round(self) -> Round:
        """Train until the next exchange is over.

        Raises:
            DivergedError: there is nothing finite to go on with.

        """

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The model that all devices agree on, as it is now."""


@dataclass(frozen=True)
class Grid:
    """The values of an option, ascending, and the one that the search starts from."""

    values: tuple[float, ...]
    start: float

    def __post_init__(self) -> None:
        if self.start not in self.values or list(self.values) != sorted(set(self.values)):
            raise ValueError(f"{self.start:g} is not one of ascending {self.values}")


@dataclass(frozen=True)
class Method:
    """A way to train, with what is searched for it."""

    name: str
    """As it stands in tables; also the name of a file."""
    family: Family
    is_compressed: bool
    """Whether its traffic takes less than fp32."""
    start: Callable[[nn.Module, LearningTask, Options, int], Run]
    """Begins a run with a model, its task, options and the seed of the batches."""
    space: Mapping[str, Grid] = field(default_factory=dict)
    """What is searched; what matters most comes first."""
