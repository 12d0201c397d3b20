"""What a model of the zoo is."""

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Batch = dict[str, Any]

SAMPLES = 6
"""In a batch; neither the length of anything nor a number of features, so that none is taken for it by chance."""


def own_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss that a model of `transformers` computes itself, called by keyword."""
    loss: Tensor = model(**batch).loss
    return loss


@dataclass(frozen=True)
class Case:
    """A model, and how it is trained."""

    package: str
    """The package on PyPI that it is from."""
    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    loss: Callable[[nn.Module, Batch], Tensor] = own_loss
    """A mean over the samples of the batch."""
    samples: int = SAMPLES
    """In a batch."""
    are_samples_told: bool = False
    """Whether `step` is told the samples, because no input has a row for each."""

    def model(self) -> nn.Module:
        """Return the model with the same random weights each time, in training mode."""
        seed(0)
        return self.build().train()

    def batch_of(self, number: int) -> Batch:
        """Return one of many different batches."""
        return self.batch(torch.Generator().manual_seed(number))

    def seeded_loss(self, model: nn.Module, batch: Batch, number: int) -> Tensor:
        """Return the loss; what the model draws at random in it, such as dropout, depends on the number alone."""
        seed(number)
        return self.loss(model, batch)


def make(path: str, *args: Any, **options: Any) -> Any:
    """Return an object of a class "package.module:Class"; a package is imported when a model of it is made."""
    return resolve_name(path)(*args, **options)


def seed(number: int) -> None:
    """Seed the generators that models draw from: torch's, and NumPy's for the masks of speech models."""
    torch.manual_seed(number)
    np.random.seed(number)
