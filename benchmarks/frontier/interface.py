"""What the benchmark knows of a method: what is searched, and a run that trains from one exchange to the next."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
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
class Recipe:
    """What a baseline consists of, for whoever puts it together otherwise."""

    inner: Callable[[nn.Module, Options], Sequence[torch.optim.Optimizer]]
    """Makes the optimizers of a device."""
    outer: Callable[[nn.Module, Options], torch.optim.Optimizer] | None
    """Makes the optimizer that follows the mean of the devices' moves; None where gradients are exchanged."""
    codec: str
    keeps_inner: bool = True
    """Whether a device's optimizers remember their past over an exchange."""


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
    recipe: Recipe | None = None
    """Of a baseline."""
