"""What the devices of a session are promised, in a sentence: for the page, the report, and each device's log."""

from dataclasses import asdict, dataclass
from typing import Any

from edgenewton.v1.privacy_options import WHOLE_DATA, AgreedBudget


@dataclass(frozen=True)
class PrivacyMode:
    """How far a session keeps the devices' data from the coordinator, and from who gets the model."""

    least_in_sum: int = 0
    """With secure aggregation: so many devices are in each sum at least. 0 without."""
    budget: AgreedBudget | None = None
    spent: float | None = None
    """Epsilon, as the device says that has spent most; None if none says."""

    @property
    def name(self) -> str:
        """In a word or two."""
        if self.budget is not None:
            return "masked, privacy budget" if self.least_in_sum else "privacy budget"
        return "masked" if self.least_in_sum else "plain"

    def figures(self) -> dict[str, Any]:
        """Return the same for JSON: see docs/operations.md."""
        budget = self.budget
        return {
            "mode": self.name,
            "least_in_sum": self.least_in_sum or None,
            "epsilon": None if budget is None else self.spent or 0.0,
            "budget": None if budget is None else asdict(budget),
            "text": str(self),
        }

    def __str__(self) -> str:
        seen = f"the coordinator sees sums of at least {self.least_in_sum} devices only"
        if self.budget is None:
            return f"masked: {seen}" if self.least_in_sum else "plain: the coordinator sees what each device sends"
        budget, spent = self.budget, self.spent or 0.0
        whose = "each device's whole data" if budget.unit == WHOLE_DATA else f"each {budget.unit}"
        told = f"privacy budget: epsilon {spent:.3g} of {budget.epsilon:g} spent at delta {budget.delta:g}, for {whose}"
        sees = f"masked: {seen}" if self.least_in_sum else "not masked: the coordinator is trusted, it sees more"
        return f"{told}; {sees}"
