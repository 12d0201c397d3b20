"""What a device may tell of its data in all: the budget that a user sets."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal, get_args

from edgenewton.common.options import check_choice, check_number

from edge_client.privacy.accounting import rho_of_release, rho_within

Unit = Literal["device", "sample"]
"""Of whose presence a budget tells little: of a device's with all its data, or of one sample's."""


class PrivacyBudgetError(ValueError):
    """The budget does not allow what was to be done; the text says why, and the way out."""


@dataclass(frozen=True)
class PrivacyBudget:
    """Differential privacy of a device's whole data, or of each sample: epsilon and delta of all that leaves in a run.

    What differs between two neighbouring runs is whether one device's contributions are there or are zeros; with the
    unit "sample", whether one sample's gradients are. What belongs to a unit is clipped to a norm, and each device adds
    its share of the noise, so that the sum has enough of it if `devices` of them are in it, even for one of those
    devices, which knows its own share.

    Raises:
        OptionError: an option is impossible.

    """

    epsilon: float
    """All contributions together; the smaller, the more private."""
    delta: float
    """Probability that epsilon does not hold; much less than one in the number of devices."""
    clip_norm: float
    """Bound on the norm of a contribution: of a batch's gradient, or of what the parameters were moved by in a round.
    With the unit "sample" that of a sample's gradient."""
    devices: int
    """So many devices' noise is in each sum at least: the session's quorum."""
    exchanges: int
    """The budget lasts for so many exchanges, with the unit "sample" for so many of each sample, which is in one of
    them in a pass over the data: the noise follows from that."""
    unit: Unit = "device"
    """Whose presence is hidden."""
    batch_size: int = 1
    """With the unit "sample": so many samples are in a contribution, at most."""

    def __post_init__(self) -> None:
        check_number("epsilon", self.epsilon, above=0)
        check_number("delta", self.delta, above=0, below=1)
        check_number("clip_norm", self.clip_norm, above=0)
        check_number("devices", self.devices, at_least=2)
        check_number("exchanges", self.exchanges, at_least=1)
        check_choice("unit", self.unit, get_args(Unit))
        check_number("batch_size", self.batch_size, at_least=1)

    @cached_property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise of a sum, without one device's share, in units of `sensitivity`."""
        return math.sqrt(self.exchanges / (2 * rho_within(self.epsilon, self.delta)))

    @property
    def sensitivity(self) -> float:
        """What one unit changes the norm of a contribution by at most, before it is rounded.

        A contribution is the gradient of the mean loss over a batch; of `batch_size` samples each has that part.
        """
        return self.clip_norm / (self.batch_size if self.unit == "sample" else 1)

    @property
    def rho(self) -> float:
        """Cost of an exchange: see `edge_client.privacy.accounting`."""
        return rho_of_release(self.noise_multiplier)

    @property
    def options(self) -> Mapping[str, object]:
        """What must be equal on all devices."""
        return asdict(self)
