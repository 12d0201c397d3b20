"""Schedules of the step size by name. Each is a function of the step's number alone.

A device that comes late, missed a step or was restarted needs nothing else to take the step that all others take.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from edgenewton.common.options import OptionError, check_choice, check_number

ScheduleName = Literal["constant", "cosine", "linear-warmup", "warmup-cosine"]
StepFactor = Callable[[int], float]
"""Returns what the step size is multiplied with in a step, by the step's number."""

_WARMING = ("linear-warmup", "warmup-cosine")
_ENDING = ("cosine", "warmup-cosine")
_WARMUP_SHARE = 20


@dataclass(frozen=True)
class Schedule:
    """What the step size is multiplied with over a run: `schedule(step)`, from 0 to 1.

    `NewtonOptimizer(model, schedule=...)` goes by it; `torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)` takes it
    for any other optimizer.

    Raises:
        OptionError: an option has an impossible value, or does not suit the schedule; the text names it.

    """

    FLAT_NAMES: ClassVar = {
        "name": "schedule",
        "steps": "schedule_steps",
        "warmup_steps": "lr_warmup_steps",
        "floor": "lr_floor",
    }

    name: ScheduleName = "constant"
    """One of "constant"; "cosine", half a cosine from 1 to `floor` over the run (Loshchilov & Hutter 2017,
    https://arxiv.org/abs/1608.03983, without restarts); "linear-warmup", which rises to 1 in equal parts and stays
    (Goyal et al. 2017, https://arxiv.org/abs/1706.02677); "warmup-cosine", the one and then the other."""
    steps: int | None = None
    """Steps of the whole run, from step 0 on. A schedule that ends needs it, and stays at `floor` after them."""
    warmup_steps: int | None = None
    """Steps until the step size is reached; None for a twentieth of `steps`."""
    floor: float = 0.0
    """Where the cosine ends, as a part of the step size."""

    def __post_init__(self) -> None:
        check_choice("schedule", self.name, get_args(ScheduleName))
        check_number("schedule_steps", self.steps, at_least=1)
        check_number("lr_warmup_steps", self.warmup_steps, at_least=1)
        check_number("lr_floor", self.floor, at_least=0, at_most=1)
        if self.warmup_steps is not None and self.name not in _WARMING:
            raise OptionError(
                "lr_warmup_steps", self.warmup_steps, f"the schedule {self.name!r} has no warm-up: {_or(_WARMING)} has"
            )
        if self.floor and self.name not in _ENDING:
            raise OptionError("lr_floor", self.floor, f"the schedule {self.name!r} has no end: {_or(_ENDING)} has")
        if self.name == "warmup-cosine" and self.steps is not None and (self.warmup_steps or 0) >= self.steps:
            raise OptionError(
                "lr_warmup_steps", self.warmup_steps, f"it must leave something of the run's {self.steps} steps"
            )

    @property
    def is_constant(self) -> bool:
        """Whether the step size stays as it is."""
        return self.name == "constant"

    def __call__(self, step: int) -> float:
        """Return the factor of a step.

        Raises:
            OptionError: the schedule needs the length of the run, and does not have it.

        """
        if self.is_constant:
            return 1.0
        rise = self._warmup()
        if step < rise:
            return (step + 1) / rise
        if self.name not in _ENDING:
            return 1.0
        length = self._length()
        part = min(1.0, (step - rise) / (length - rise))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * part)) / 2

    def _warmup(self) -> int:
        if self.name not in _WARMING:
            return 0
        return self.warmup_steps or self._length() // _WARMUP_SHARE

    def _length(self) -> int:
        if self.steps is None:
            raise OptionError("schedule_steps", None, f"the schedule {self.name!r} needs the number of the run's steps")
        return self.steps


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(map(repr, names))
