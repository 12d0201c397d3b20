"""A scheduler of torch that goes by the number of the session's step, not by how often somebody called it."""

import copy
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

_SCHEDULED = ("lr", "momentum")
"""What torch's schedulers change in a group."""


class FollowedScheduler:
    """Brings a scheduler to the step that is on.

    A device that missed steps, came late or was restarted would call `scheduler.step()` less often than the others.

    Args:
        optimizer: whose groups it changes.
        scheduler: as it was made; nobody else steps it.

    Raises:
        ValueError: the scheduler is another optimizer's, was stepped already, or follows a device's own loss.

    """

    def __init__(self, optimizer: Optimizer, scheduler: LRScheduler) -> None:
        name = type(scheduler).__name__
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(f"{name} follows a loss, which differs between devices; take one that counts steps")
        if scheduler.optimizer is not optimizer:
            raise ValueError(f"the {name} is another optimizer's: make it with this one")
        if scheduler.last_epoch != 0:
            raise ValueError(f"the {name} was stepped {scheduler.last_epoch} times already: give it as it was made")
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._beginning = copy.deepcopy(scheduler.state_dict())
        self._scheduled = [{name: group[name] for name in _SCHEDULED} for group in optimizer.param_groups]
        self._is_astray = False

    def stray(self) -> None:
        """Take note that the groups have values of another time."""
        self._is_astray = True

    def go_to(self, step: int) -> None:
        """Give the groups the values of a step, counted from 0."""
        scheduler: Any = self._scheduler
        if self._is_astray or scheduler.last_epoch > step:
            # Several of torch's schedulers find a value from the one before it: they begin anew.
            for group, values in zip(self._optimizer.param_groups, self._scheduled, strict=False):
                group.update(values)
            scheduler.load_state_dict(copy.deepcopy(self._beginning))
            self._is_astray = False
        if scheduler.last_epoch < step:
            self._optimizer._opt_called = True  # type: ignore[attr-defined]  # else torch warns of steps not taken
        while scheduler.last_epoch < step:
            scheduler.step()
