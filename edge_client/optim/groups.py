"""The groups of an optimizer's parameters, with the step sizes and bounds that they have in a step of the session."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edgenewton.common.options import check_number
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from edge_client.curvature.preconditioner import Direction
from edge_client.optim.descent import descend
from edge_client.optim.followed_scheduler import FollowedScheduler
from edge_client.optim.hyperparameters import hyperparameters_of
from edge_client.optim.options import Bounds, TrustRegion
from edge_client.optim.schedules import StepFactor
from edge_client.optim.trust_region import BoundedStep, bounded


class ParameterGroups:
    """Those of one optimizer, as they are now.

    Args:
        optimizer: whose they are.
        factor_of: what step sizes are multiplied with, by the step's number.
        trust: how far a step may go.
        bounds: those of a step of the full size.

    Raises:
        OptionError: the schedule gives something impossible for the first step, or lacks the length of the run.

    """

    def __init__(self, optimizer: Optimizer, factor_of: StepFactor, trust: TrustRegion, bounds: Bounds) -> None:
        self._optimizer = optimizer
        self._factor_of = factor_of
        self._trust, self._bounds = trust, bounds
        self._scheduler: FollowedScheduler | None = None
        self.factor(0)

    def by_parameter(self) -> dict[Tensor, dict[str, Any]]:
        """Return each optimised parameter's group."""
        return {parameter: group for group in self._optimizer.param_groups for parameter in group["params"]}

    def follow(self, scheduler: LRScheduler) -> None:
        """Let a scheduler of torch set the groups: see `FollowedScheduler`."""
        self._scheduler = FollowedScheduler(self._optimizer, scheduler)

    def stray(self) -> None:
        """Take note that the groups have values of another time."""
        if self._scheduler is not None:
            self._scheduler.stray()

    def factor(self, step: int) -> float:
        """Return what step sizes are multiplied with in a step, and bring a scheduler there.

        Raises:
            OptionError: the schedule gives something impossible, or lacks the length of the run.

        """
        if self._scheduler is not None:
            self._scheduler.go_to(step)
        factor = float(self._factor_of(step))
        check_number(f"the schedule's factor in step {step}", factor, at_least=0, below=math.inf)
        return factor

    def hyperparameters(self, step: int) -> dict[str, float]:
        """Return what a step is applied with; it must be the same on all devices."""
        return hyperparameters_of(self._optimizer.param_groups, self.factor(step))

    def damping_of(self, step: int, factor: float) -> Callable[[Tensor], float]:
        """Return what gives a parameter's damping in a step, multiplied with a factor."""
        groups = self.by_parameter()
        grown = factor / self._trust.shrunk(step) ** 2
        return lambda weight: float(groups[weight]["damping"]) * grown

    def bounded(self, directions: Iterable[Direction], step: int, factor: float) -> BoundedStep:
        """Shorten the directions of a step, of which `factor` gave the factor, to its trust regions."""
        shrunk = self._trust.shrunk(step)
        groups = self.by_parameter()
        return bounded(
            directions,
            lambda weight: groups[weight]["lr"] * factor,
            lambda weight: max(_full_lr(groups[weight]), groups[weight]["lr"] * factor),
            kl_clip=shrunk**2 * self._bounds.kl_clip,
            update_clip=shrunk * self._bounds.update_clip,
        )

    def descend(self, directions: Mapping[Tensor, Tensor], factor: float) -> None:
        """Move the parameters that have a direction, but for those that were frozen since."""
        for group in self._optimizer.param_groups:
            moved = [p for p in group["params"] if p.requires_grad and p in directions]
            if moved:
                descend(moved, [directions[p] for p in moved], group, self._optimizer.state, group["lr"] * factor)


def _full_lr(group: dict[str, Any]) -> float:
    """Return the step size from which a scheduler of torch, if there is one, takes a part."""
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))
