"""What the steps of an optimizer are applied with, as devices tell it each other: it must be the same on all."""

from collections.abc import Sequence
from typing import Any


def hyperparameters_of(groups: Sequence[dict[str, Any]], factor: float) -> dict[str, float]:
    """Return, by name, what a scheduler or the user may have changed in the parameter groups since devices joined.

    Args:
        groups: of the optimizer.
        factor: what the step sizes are multiplied with in the step.

    """
    several = len(groups) > 1
    told = {
        f"{name} of group {number}" if several else name: float(group[name]) * (factor if name == "lr" else 1)
        for number, group in enumerate(groups)
        for name in ("lr", "momentum", "weight_decay", "damping")
    }
    frozen = sum(not parameter.requires_grad for group in groups for parameter in group["params"])
    return told | {"number of frozen parameters": float(frozen)}
