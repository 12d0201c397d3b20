"""Targets drawn from a model's own predictions: what makes a sampled Fisher the Fisher, not the empirical one.

Martens 2014, "New Insights and Perspectives on the Natural Gradient Method" (https://arxiv.org/abs/1412.1193),
section 5 and 11, on why the two differ.
"""

from typing import Literal

import torch
from torch import Tensor

Likelihood = Literal["categorical", "bernoulli", "normal"]


@torch.no_grad()
def sample_targets(
    outputs: Tensor, likelihood: Likelihood = "categorical", generator: torch.Generator | None = None
) -> Tensor:
    """Return targets drawn from the distribution that a model predicts.

    Args:
        outputs: of the model: logits `[..., classes]` of a categorical distribution; logits of Bernoulli variables; or
            means of normal variables with variance 1, whose loss is half the squared error.
        likelihood: the distribution.
        generator: of the random numbers. One of the CPU draws there whatever the outputs' device is: the generators of
            others draw other numbers from the same seed.

    Returns:
        Classes `[...]`, int64; for the others a tensor of the outputs' shape and dtype.

    """
    if generator is not None and generator.device != outputs.device:
        return sample_targets(outputs.to(generator.device), likelihood, generator).to(outputs.device)
    if likelihood == "categorical":
        probabilities = outputs.softmax(dim=-1).flatten(0, -2)
        return torch.multinomial(probabilities, 1, generator=generator).view(outputs.shape[:-1])
    if likelihood == "bernoulli":
        return torch.bernoulli(outputs.sigmoid(), generator=generator)
    noise = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype, device=outputs.device)
    return outputs + noise
