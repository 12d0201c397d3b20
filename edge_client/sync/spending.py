"""What a plan with a privacy budget pays, and what it refuses, whatever it is that it exchanges."""

import math
from collections.abc import Mapping
from typing import Any

from edge_client.exchange import Exchange, Membership, QuorumMembership
from edge_client.privacy import PrivacyBudget, PrivacyBudgetError, PrivacyLedger
from edge_client.sync.model_tensors import ModelTensors
from edge_client.sync.plan import Subject


class Spending:
    """Counts a device's exchanges against its budget, over sessions and restarts.

    Args:
        exchange: the way to the other devices.
        budget: the budget.
        steps: one charge pays for so many steps that follow each other: those of a round, or of a pass over the data.

    Raises:
        PrivacyBudgetError: there are no other devices.

    """

    def __init__(self, exchange: Exchange, budget: PrivacyBudget, steps: int) -> None:
        if exchange.is_alone:
            raise PrivacyBudgetError(
                "a privacy budget is for what a device tells others, and this one trains alone: leave the budget out, "
                "or train in a session"
            )
        self.budget = budget
        self._ledger = PrivacyLedger(budget)
        self._steps = steps
        self._known = 0
        """The last step that was told of, or paid."""
        self._next = 0
        """The step after the last one that was paid."""
        self._covered_to = 0
        """The step after those that the last charge since this device joined pays for."""

    @property
    def options(self) -> Mapping[str, object]:
        """What must be equal on all devices."""
        return {f"privacy_{name}": value for name, value in self.budget.options.items()}

    @property
    def epsilon(self) -> float:
        """Spent so far."""
        return self._ledger.epsilon

    def why_ended(self, step: int) -> str:
        """Return why a step may not be exchanged; empty if it may."""
        return "" if step < self._covered_to else self._ledger.why_spent

    def check_subject(self, subject: Subject, tensors: ModelTensors) -> None:
        """Refuse what would leave the device besides what is noised.

        Raises:
            PrivacyBudgetError: the text names it.

        """
        if tensors.buffers:
            raise PrivacyBudgetError(
                f"the buffer {min(tensors.buffers)!r} is an average of this device's data, which a privacy "
                "budget does not cover: take layers without running statistics, such as GroupNorm for BatchNorm"
            )
        if subject.scalars:
            raise PrivacyBudgetError(
                "adapt_every compares losses of this device's data and tells the result, which a privacy budget does "
                "not cover: leave it out"
            )

    def join(self, place: Membership) -> None:
        """Take note of a place; what is sent from now on is paid, even if it was before.

        Raises:
            PrivacyBudgetError: the session sums up fewer devices' noise than the budget needs.

        """
        least = place.least_devices if isinstance(place, QuorumMembership) else 0
        if least < self.budget.devices:
            raise PrivacyBudgetError(
                f"the noise of {self.budget.devices} devices is what the privacy budget needs in each sum, and the "
                f"session's quorum is {least}: raise the coordinator's --quorum, or say so many devices in the budget"
            )
        if place.step < self._known:
            self._known = self._next = 0  # in another session
        self._covered_to = 0
        self.pay_missed(place.step)

    def pay(self, step: int, batches: int = 1, *, covers: int | None = None, is_anew: bool = False) -> None:
        """Pay for a step, before anything of it leaves; one that was paid costs nothing, however often it is sent.

        Args:
            step: number of the exchange's step.
            batches: that are in it.
            covers: so many steps from this one on need no other charge; None for those of the batches.
            is_anew: whether it costs something even if the step was paid.

        Raises:
            PrivacyBudgetError: the budget does not allow it.

        """
        self.pay_missed(step)
        if step >= self._covered_to or is_anew:
            self._ledger.charge()
            self._covered_to = step + (covers or batches)
        self._known, self._next = step, step + batches

    def pay_missed(self, step: int) -> None:
        """Pay for steps that the session took: a device that lost its state may have told of its data in them."""
        missed = step - max(self._next, self._covered_to)
        if missed > 0:
            self._ledger.note(self._charges(step - missed, step))
            self._known = self._next = step

    def state_dict(self) -> dict[str, Any]:
        """Return what was spent, and for which steps."""
        return self._ledger.state_dict() | {"paid_to": self._next, "known": self._known}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Go on counting; an empty state has told nothing before a step.

        Raises:
            ValueError: it is no such state.

        """
        self._ledger.load_state_dict(state)
        self._next = state.get("paid_to", step)  # what was trained without a budget is no part of it
        self._known = state.get("known", self._next)

    def _charges(self, first: int, end: int) -> int:
        """Return what the steps from one to before another cost: passes over the data begin at set steps."""
        if self.budget.unit == "sample":
            return math.ceil(end / self._steps) - first // self._steps
        return math.ceil((end - first) / self._steps)
