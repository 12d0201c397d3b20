"""Tasks of four numbers: large ones overflow inside the model, and the code of `FRAGILE` itself fails."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edge_client.tasks import Partition, SampleError, Samples, Task

HUGE = 3e38
"""Finite in float32; twice as much is not."""


class FourNumbers(Task):
    """A linear model whose weights are 2."""

    name = "four-numbers"
    labels = ("a", "b", "c")
    input_shape = (4,)

    def model(self) -> nn.Module:
        model = nn.Linear(4, 3)
        nn.init.constant_(model.weight, 2.0)
        return model

    def decode(self, sample: object) -> Tensor:
        """Numbers with commas between them: a text in bytes, or in a file."""
        text = sample if isinstance(sample, bytes) else Path(sample).read_bytes()
        try:
            return torch.from_numpy(np.array(text.split(b","), np.float32))
        except ValueError:
            raise SampleError(f"{text!r} is not four numbers") from None

    def train_data(self, partition: Partition) -> Samples:
        return Samples(torch.full((2, 4), HUGE), torch.zeros(2, dtype=torch.long))

    test_data = train_data


class Pooled(FourNumbers):
    """Its activations give NaN for large numbers, among which a maximum is taken."""

    name = "pooled"

    def model(self) -> nn.Module:
        layer = nn.Linear(4, 8)
        nn.init.constant_(layer.weight, -2.0)
        pooling = nn.Sequential(nn.GELU(), nn.Unflatten(1, (2, 4)), nn.MaxPool1d(2), nn.Flatten())
        return nn.Sequential(layer, pooling, nn.Linear(4, 3))


class Squared(FourNumbers):
    """Its preprocessing overflows."""

    name = "squared"

    def preprocess(self, raw: Tensor) -> Tensor:
        return raw * raw

    def train_data(self, partition: Partition) -> Samples:
        return Samples(torch.rand(32, 4), torch.zeros(32, dtype=torch.long))

    test_data = train_data


class Fragile(FourNumbers):
    """Fails at some samples, as code does that nobody tried."""

    name = "fragile"

    def decode(self, sample: object) -> Tensor:
        match sample:
            case b"key":
                raise KeyError("no such entry")
            case b"exit":
                raise SystemExit(3)
            case b"none":
                return None
        return super().decode(sample)

    def preprocess(self, raw: Tensor) -> Tensor:
        if (raw == 13).any():
            raise ArithmeticError("13 is unlucky")
        return raw

    def true_label(self, sample: object) -> str | None:
        raise OSError("the labels are elsewhere")


class WrongOutputs(FourNumbers):
    """Its model gives two numbers where there are three labels."""

    def model(self) -> nn.Module:
        return nn.Linear(4, 2)
