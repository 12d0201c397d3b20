"""What a device may tell of its data in all: the budget that a user sets."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

from edgenewton.common.options import check_number

from edge_client.privacy.accounting import rho_of_release, rho_within


class PrivacyBudgetError(ValueError):
    """The budget does not allow what was to be done; the text says why, and the way out."""


@dataclass(frozen=True)
class PrivacyBudget:
    """Differential privacy of a device's whole data: epsilon and delta of all that leaves it in a run.

    What differs between two neighbouring runs is whether one device's contributions are there or are zeros. Each
    contribution is clipped to a norm, and each device adds its share of the noise, so that the sum has enough of it if
    `devices` of them are in it, even for one of those devices, which knows its own share.

    Raises:
        OptionError: an option is impossible.

    """

    epsilon: float
    """All contributions together; the smaller, the more private."""
    delta: float
    """Probability that epsilon does not hold; much less than one in the number of devices."""
    clip_norm: float
    """Bound on the norm of a contribution: of what the parameters were moved by in a round."""
    devices: int
    """So many devices' noise is in each sum at least: the session's quorum."""
    exchanges: int
    """The budget lasts for so many exchanges: the noise follows from that."""

    def __post_init__(self) -> None:
        check_number("epsilon", self.epsilon, above=0)
        check_number("delta", self.delta, above=0, below=1)
        check_number("clip_norm", self.clip_norm, above=0)
        check_number("devices", self.devices, at_least=2)
        check_number("exchanges", self.exchanges, at_least=1)

    @cached_property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise of a sum, without one device's share, in units of `clip_norm`."""
        return math.sqrt(self.exchanges / (2 * rho_within(self.epsilon, self.delta)))

    @property
    def rho(self) -> float:
        """Cost of an exchange: see `edge_client.privacy.accounting`."""
        return rho_of_release(self.noise_multiplier)

    @property
    def options(self) -> Mapping[str, object]:
        """What must be equal on all devices."""
        return asdict(self)
