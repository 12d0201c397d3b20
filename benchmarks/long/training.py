"""One training by one method: the union of the devices' gradients, a step, and the weights that are evaluated."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from edgenewton.v1.codecs import CodecChoice
from edgenewton.v1.tensor_spec import TensorSpec
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from benchmarks.long.iterate_average import IterateAverage
from benchmarks.long.union_gradient import Batch, UnionGradient
from edge_client.tasks import Task

Variant = Literal["plain", "averaged"]
"""Whether the last weights are evaluated, or an average of all."""
CODEC = CodecChoice("bf16")
"""How everything travels, the gradients of all methods and the curvature of ours."""


class Training(ABC):
    """One training of one model.

    Args:
        model: what is trained.
        task: whose loss it is.

    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.model = model
        self._gradient = UnionGradient(model, task.loss)

    def add_gradient(self, batches: Sequence[Batch]) -> float:
        """Compute the gradient of all devices' batches, and return the mean loss.

        Raises:
            DivergedError: a loss is not finite.

        """
        return self._gradient.add(batches, self._hold)

    @abstractmethod
    def step(self) -> None:
        """Update the weights."""

    @abstractmethod
    def follow(self) -> None:
        """Take the weights that the step has left into an average, where the optimizer does not do it itself."""

    @abstractmethod
    def evaluated(self) -> Iterator[tuple[Variant, nn.Module]]:
        """Yield the models that are to be evaluated; each is only valid until the next is asked for."""

    @property
    @abstractmethod
    def bytes_of_step(self) -> int:
        """What a device sent in the last step; it received as much."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What the optimizer would tell other devices of itself."""
        return {}

    @property
    def _hold(self) -> Callable[[], AbstractContextManager[None]]:
        return nullcontext


class BaselineTraining(Training):
    """A baseline: gradients are exchanged, and nothing else.

    Args:
        model: what is trained.
        task: whose loss it is.
        optimizers: each of parameters of its own.
        schedulers: of the optimizers' rates.
        average: of its iterates; None where the optimizer has an average of its own.

    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[LRScheduler],
        average: IterateAverage | None,
    ) -> None:
        super().__init__(model, task)
        self._optimizers = optimizers
        self._schedulers = schedulers
        self._average = average
        trained = [(name, p.shape) for name, p in model.named_parameters() if p.requires_grad]
        self._bytes = sum(size_of(TensorSpec(name, tuple(shape))) for name, shape in trained)

    def step(self) -> None:
        """Update the weights, and the rates of the next step."""
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for scheduler in self._schedulers:
            scheduler.step()

    def follow(self) -> None:
        """Take the weights into the average."""
        if self._average is not None:
            self._average.follow(self.model)

    def evaluated(self) -> Iterator[tuple[Variant, nn.Module]]:
        """Yield the last weights, and their average."""
        yield "plain", self.model
        if self._average is not None:
            yield "averaged", self._average.model

    @property
    def bytes_of_step(self) -> int:
        """The gradients."""
        return self._bytes


def size_of(spec: TensorSpec) -> int:
    """Return the bytes of a tensor on the wire."""
    return CODEC.policy().chain_for(spec).encoded_size(spec.shape)
