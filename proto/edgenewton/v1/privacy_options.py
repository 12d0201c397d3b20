"""The privacy budget among the options that the devices of a session agree on, for who insists on one, or shows it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

WHOLE_DATA = "device"
"""The unit of a budget that is of a device's whole data."""
EACH_SAMPLE = "sample"
"""That of one of each sample: less is hidden."""


@dataclass(frozen=True)
class AgreedBudget:
    """What all that leaves a device may tell of its data in a run."""

    epsilon: float
    delta: float
    """Probability that epsilon does not hold."""
    unit: str = WHOLE_DATA
    """What is hidden: a device's whole data, or something smaller."""

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Self | None:
        """Return the budget among the options of a session; None if there is none, or none that can be read."""
        try:
            budget = cls(
                float(options["privacy_epsilon"]),
                float(options["privacy_delta"]),
                options.get("privacy_unit", WHOLE_DATA),
            )
        except (KeyError, ValueError):
            return None
        return budget if 0 < budget.epsilon < math.inf and 0 < budget.delta < 1 else None
