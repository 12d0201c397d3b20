"""Synthetic inputs for a probe, drawn by moments that the devices average of their inputs.

Each device measures its own; the mean of these, weighted by the devices' samples, is that of the union of their inputs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_SMALLEST_DEVIATION = 1e-3
"""Where a feature is the same in all samples, its weights would have no curvature."""


@dataclass(frozen=True, eq=False)
class GaussianInputs:
    """Inputs whose features are independent normal variables.

    Raises:
        ValueError: the moments do not fit each other, or are impossible.

    """

    mean: Tensor
    """Of each feature, `[*input_shape]`."""
    deviation: Tensor
    """Standard deviation of each, `[*input_shape]`."""

    def __post_init__(self) -> None:
        if self.mean.shape != self.deviation.shape:
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.deviation.shape)}"
            raise ValueError(f"mean and deviation have the shapes {shapes}; both must have that of one input")
        if not (self.mean.isfinite().all() and self.deviation.isfinite().all() and (self.deviation >= 0).all()):
            raise ValueError("mean and deviation must be finite, and no deviation may be negative")

    @classmethod
    def measure(cls, inputs: Tensor) -> dict[str, Tensor]:
        """Return the moments of a device's inputs `[n, *input_shape]`: "mean" and "second_moment", `[*input_shape]`.

        They are float64: the variance is a small difference of theirs.
        """
        inputs = inputs.detach().cpu().double()
        n = max(len(inputs), 1)  # a device without samples has no weight in the mean
        return {"mean": inputs.sum(dim=0) / n, "second_moment": inputs.square().sum(dim=0) / n}

    @classmethod
    def of_moments(cls, moments: Mapping[str, Tensor]) -> Self:
        """Return the inputs that have averaged moments."""
        mean = moments["mean"].double()
        variance = moments["second_moment"].double() - mean.square()
        deviation = variance.clamp(min=0).sqrt().clamp(min=_SMALLEST_DEVIATION)
        return cls(mean.float(), deviation.float())

    def __call__(self, generator: torch.Generator, n: int) -> Tensor:
        """Return `n` inputs, float32 `[n, *input_shape]`."""
        noise = torch.randn(n, *self.mean.shape, generator=generator, dtype=torch.float32)
        return self.mean.float() + self.deviation.float() * noise


@dataclass(frozen=True, eq=False)
class TokenInputs:
    """Inputs that are independent tokens, each drawn as often as it is among the devices' inputs.

    Raises:
        ValueError: the frequencies are impossible.

    """

    frequencies: Tensor
    """Of each token, `[tokens]`, of any scale; zeros for tokens that are all as frequent."""
    shape: tuple[int, ...]
    """Of one input."""

    def __post_init__(self) -> None:
        frequencies = self.frequencies
        if frequencies.dim() != 1 or not len(frequencies):
            raise ValueError(f"frequencies have the shape {tuple(frequencies.shape)}; there must be one for each token")
        if not (frequencies.isfinite().all() and (frequencies >= 0).all()):
            raise ValueError("frequencies must be finite, and none may be negative")

    @classmethod
    def uniform(cls, tokens: int, shape: tuple[int, ...]) -> Self:
        """Return inputs of so many tokens that are all as frequent."""
        return cls(torch.zeros(tokens), shape)

    @classmethod
    def measure(cls, inputs: Tensor, tokens: int) -> dict[str, Tensor]:
        """Return the moments of a device's inputs `[n, *input_shape]`: "frequencies", float64 `[tokens]`.

        Raises:
            ValueError: an input holds what is no token.

        """
        indices = inputs.detach().flatten().cpu()
        strange = indices[(indices < 0) | (indices >= tokens)]
        if len(strange):
            raise ValueError(f"inputs hold the token {int(strange[0])}; known are 0 to {tokens - 1}")
        return {"frequencies": torch.bincount(indices, minlength=tokens).double() / max(len(indices), 1)}

    @classmethod
    def of_moments(cls, moments: Mapping[str, Tensor], shape: tuple[int, ...]) -> Self:
        """Return the inputs of a shape that have averaged moments; a rounded frequency may be just below 0."""
        return cls(moments["frequencies"].clamp(min=0), shape)

    def __call__(self, generator: torch.Generator, n: int) -> Tensor:
        """Return `n` inputs, int64 `[n, *shape]`."""
        frequencies = self.frequencies.double()
        weights = frequencies if frequencies.any() else torch.ones_like(frequencies)
        count = n * math.prod(self.shape)
        return torch.multinomial(weights, count, replacement=True, generator=generator).view(n, *self.shape)
