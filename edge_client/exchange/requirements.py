"""What a device insists on: a session that does not give it is not joined."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.privacy_options import EACH_SAMPLE, WHOLE_DATA, AgreedBudget

from edge_client.exchange.errors import Cause, ExchangeError

_MASKED = "secure-aggregation"
_USUAL_DELTA = 1e-5
"""The largest that suits who insists on an epsilon, and on no delta: with a large one an epsilon promises nothing."""
_FORMS = (
    f"{_MASKED}, {_MASKED}>=N for sums of at least N devices, epsilon<=E for a privacy budget of at most E, "
    "sample-epsilon<=E for one of each sample, delta<=D for one whose delta is at most D; several with commas between "
    "them"
)
_NAMES = {WHOLE_DATA: "epsilon", EACH_SAMPLE: "sample-epsilon"}
"""By unit of the budget."""
_UNITS = {WHOLE_DATA: "a device's whole data", EACH_SAMPLE: "each sample"}
_MASKS = re.compile(rf"{_MASKED}(?:\s*>=\s*([0-9]{{1,6}}))?")
_BOUND = re.compile(r"(epsilon|sample-epsilon|delta)\s*<=\s*([0-9.eE+-]{1,32})")


class RequirementError(ValueError):
    """A text that is no requirement."""


@dataclass(frozen=True)
class Requirements:
    """What a device insists on; of several texts about the same the strictest counts."""

    least: int | None = None
    """Secure aggregation, and so many devices in each sum at least; None if it need not be."""
    epsilon: float | None = None
    """Largest epsilon of the privacy budget; None for any."""
    delta: float | None = None
    """Largest delta of the privacy budget; None for what is usual if there is to be a budget."""
    unit: str = WHOLE_DATA
    """Of the budget, if an epsilon is given."""

    @classmethod
    def parse(cls, required: Sequence[str]) -> Self:
        """Return what texts such as "secure-aggregation>=8, epsilon<=4" insist on.

        Raises:
            RequirementError: one of them cannot be understood; the text says what can.

        """
        least: list[int] = []
        bounds: dict[str, list[float]] = {"epsilon": [], "sample-epsilon": [], "delta": []}
        for text in (part for given in required for part in _parts(given)):
            if masks := _MASKS.fullmatch(text):
                least.append(max(2, int(masks[1] or 0)))
            elif bound := _BOUND.fullmatch(text):
                bounds[bound[1]].append(_number(bound[1], bound[2]))
            else:
                raise RequirementError(f"{text!r} is nothing that can be required: {_FORMS}")
        epsilon, of_sample, delta = (min(of, default=None) for of in bounds.values())
        if epsilon is not None and of_sample is not None:
            raise RequirementError(
                "a privacy budget is of a device's whole data or of each sample: insist on epsilon or on "
                "sample-epsilon, not on both"
            )
        unit = WHOLE_DATA if of_sample is None else EACH_SAMPLE
        return cls(max(least, default=None), epsilon if of_sample is None else of_sample, delta, unit)

    def __bool__(self) -> bool:
        """Whether it insists on anything."""
        return self != type(self)()

    @property
    def masks(self) -> str:
        """What it insists on of secure aggregation, as it is written."""
        return _MASKED if self.least in (None, 2) else f"{_MASKED}>={self.least}"

    @property
    def wants_budget(self) -> bool:
        """Whether it insists on a privacy budget."""
        return self.epsilon is not None or self.delta is not None

    @property
    def most_delta(self) -> float:
        """Largest delta of a budget, if there is to be one."""
        return _USUAL_DELTA if self.delta is None else self.delta

    def check_session(self, settings: pb.ExchangeSettings, device: str, session: str) -> None:
        """Check that a session gives what is to come from it.

        Args:
            settings: of the session, as its coordinator told them.
            device: id of this device.
            session: name of the session.

        Raises:
            ExchangeError: it does not.

        """
        if self.least is None:
            return
        refusal = f"device {device!r} insists on {self.masks}, and session {session!r}"
        if not settings.HasField("secure_aggregation"):
            raise ExchangeError(
                f"{refusal} has no secure aggregation: its coordinator would see what each device sends. Open it with "
                "--secure-aggregation, or train without --require",
                Cause.REFUSED,
            )
        if settings.secure_aggregation.least < self.least:
            raise ExchangeError(
                f"{refusal} gives away sums of {settings.secure_aggregation.least} devices; open it with a --quorum of "
                f"{self.least}, or ask for less",
                Cause.REFUSED,
            )

    def check_budget(self, options: Mapping[str, str], device: str) -> None:
        """Check that what this device is to train with keeps to the privacy budget, wherever its settings come from.

        Args:
            options: those that the device joins with, which all devices of a session have alike.
            device: id of this device.

        Raises:
            ExchangeError: it has none, or a larger one.

        """
        if not self.wants_budget:
            return
        bounds = {_NAMES[self.unit]: self.epsilon, "delta": self.delta}
        wanted = " and ".join(f"{name}<={bound:g}" for name, bound in bounds.items() if bound is not None)
        refusal = f"device {device!r} insists on {wanted}, and is to train with"
        budget = AgreedBudget.of(options)
        if budget is None:
            example = f"epsilon={self.epsilon:g}" if self.epsilon is not None else "epsilon"
            raise ExchangeError(
                f"{refusal} no privacy budget: what leaves it would tell of its data without a bound. Set {example}, "
                "with clip-norm and noise-devices, or train without --require",
                Cause.REFUSED,
            )
        if self.epsilon is not None and budget.unit != self.unit:
            raise ExchangeError(
                f"{refusal} a budget of {_UNITS.get(budget.unit, budget.unit)}, which is counted otherwise: set "
                f"privacy-unit={self.unit}, or insist on {_NAMES.get(budget.unit, 'delta')}",
                Cause.REFUSED,
            )
        for name, found, most in (
            ("epsilon", budget.epsilon, self.epsilon),
            ("delta", budget.delta, self.most_delta),
        ):
            if most is not None and found > most:
                told = "" if name == "epsilon" or self.delta is not None else f", which is more than the usual {most:g}"
                raise ExchangeError(
                    f"{refusal} {name}={found:g}{told}: set {name} to {most:g} or less, or insist on "
                    f"{_NAMES[self.unit] if name == 'epsilon' else name}<={found:g}",
                    Cause.REFUSED,
                )


def check_requirements(required: Sequence[str]) -> None:
    """Check that requirements can be understood.

    Raises:
        RequirementError: one of them cannot; the text says what can.

    """
    Requirements.parse(required)


def _parts(given: str) -> list[str]:
    """Return the requirements in a text, between commas or spaces; an empty one is none that can be understood."""
    return [part for part in re.split(r"[,\s]+", re.sub(r"\s*([<>]=)\s*", r"\1", given)) if part] or [given]


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    most = 1.0 if name == "delta" else math.inf
    if not 0 < value < most:
        kind = "a number between 0 and 1" if name == "delta" else "a number above 0"
        raise RequirementError(f"{name}<={text} is nothing that can be required: the bound of {name} is {kind}")
    return value
