"""What a device has spent of its budget."""

import math
from collections.abc import Mapping
from typing import Any

from edge_client.privacy.accounting import epsilon_of
from edge_client.privacy.budget import PrivacyBudget, PrivacyBudgetError

_ROUNDING = 1e-9


class PrivacyLedger:
    """Counts what leaves a device, before it does.

    Args:
        budget: the budget.

    """

    def __init__(self, budget: PrivacyBudget) -> None:
        self._budget = budget
        self.rho = 0.0
        """Spent so far."""
        self.exchanges = 0
        """That it was spent in."""

    @property
    def epsilon(self) -> float:
        """Spent so far, at the budget's delta; what is spent whole is not more by rounding."""
        spent = epsilon_of(self.rho, self._budget.delta)
        return self._budget.epsilon if math.isclose(spent, self._budget.epsilon, rel_tol=_ROUNDING) else spent

    @property
    def is_spent(self) -> bool:
        """Whether another exchange would be too much."""
        return self._epsilon_after(1) > self._budget.epsilon * (1 + _ROUNDING)

    @property
    def why_spent(self) -> str:
        """Why no exchange may follow, and the way out; empty if one may."""
        if not self.is_spent:
            return ""
        budget = self._budget
        times = f"{self.exchanges} exchange{'' if self.exchanges == 1 else 's'}"
        return (
            f"the privacy budget is spent: {times} took epsilon {self.epsilon:.3g} of {budget.epsilon:g} at delta "
            f"{budget.delta:g}, and the next one would make it {self._epsilon_after(1):.3g}; what was trained stays as "
            "good as it is, and to go on needs a larger epsilon, which tells more of the data"
        )

    def charge(self) -> None:
        """Spend what an exchange costs; call it before anything of it leaves.

        Raises:
            PrivacyBudgetError: the budget does not allow it.

        """
        if self.is_spent:
            raise PrivacyBudgetError(self.why_spent)
        self.note(1)

    def note(self, exchanges: int) -> None:
        """Take note of exchanges that may have been paid already by this device, before it lost its state."""
        self.rho += exchanges * self._budget.rho
        self.exchanges += exchanges

    def state_dict(self) -> dict[str, Any]:
        """Return what was spent."""
        return {"rho": self.rho, "exchanges": self.exchanges}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from what `state_dict` gave; an empty one has spent nothing.

        Raises:
            ValueError: it is no such state.

        """
        rho, exchanges = float(state.get("rho", 0.0)), int(state.get("exchanges", 0))
        if not (0 <= rho < math.inf) or exchanges < 0:
            raise ValueError(f"the state has spent a rho of {rho} in {exchanges} exchanges, which cannot be")
        self.rho, self.exchanges = rho, exchanges

    def _epsilon_after(self, exchanges: int) -> float:
        return epsilon_of(self.rho + exchanges * self._budget.rho, self._budget.delta)
