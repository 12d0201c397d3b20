"""Local steps under a privacy budget: all that leaves of a device's data are its moves, clipped and noised.

What a round tells is the sum of the devices' clipped moves with the noise of all; the anchor that follows from it, and
whatever is computed from that, costs nothing more. Each device's own curvature shapes its steps before they are
clipped, and never leaves. No loss, no accuracy, no count of samples and no time that a device took leaves either.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_client.exchange import Evaluation, Exchange, NonFiniteGradientError
from edge_client.privacy import ClippedNoise, PrivacyBudget, PrivacyBudgetError
from edge_client.sync.local_steps import LOCAL_STEPS, LocalSteps
from edge_client.sync.outer import Outer
from edge_client.sync.plan import Report, Subject, Update
from edge_client.sync.rounds import Round, SentRound
from edge_client.sync.scope import CurvatureScope
from edge_client.sync.spending import Spending


class PrivateLocalSteps(LocalSteps):
    """Local steps, and exchanges of which only a noised sum of clipped moves can be learnt.

    With secure aggregation the coordinator sees that sum alone; without, it sees each device's move with the device's
    share of the noise, which is too little to hide it, and must be trusted. Other devices see the sum in any case.

    Args:
        exchange: the way to the other devices.
        budget: epsilon, delta, the bound on a move's norm, and for how many devices and exchanges the noise is made.
        every: batches between two exchanges.
        outer: what is done with the mean of the devices' moves.
        scope: whose curvature the local steps use: one that tells other devices nothing; None for each device's own.
        clip_grad_norm: bound on the norm of a batch's gradient over all parameters.

    Raises:
        OptionError: an option is impossible.
        PrivacyBudgetError: there are no other devices, or the budget's unit is a sample.

    """

    is_private = True
    _kind = "noised"

    def __init__(
        self,
        exchange: Exchange,
        budget: PrivacyBudget,
        every: int = LOCAL_STEPS,
        *,
        outer: Outer | None = None,
        scope: CurvatureScope | None = None,
        clip_grad_norm: float | None = None,
    ) -> None:
        # How many samples a device holds is of its data, too: it is told that there is one.
        super().__init__(exchange, every, outer=outer, scope=scope, clip_grad_norm=clip_grad_norm, training_samples=1)
        if budget.unit != "device":
            raise PrivacyBudgetError(
                f"the unit of the privacy budget is {budget.unit!r}, and a round of local steps moves a model by "
                "what it has of all samples: take unit='device', or PrivateGradients"
            )
        self._spending = Spending(exchange, budget, every)

    @property
    def options(self) -> Mapping[str, object]:
        """How often, how far, with whose curvature, and under which budget."""
        return {**super().options, **self._spending.options}

    @property
    def ended(self) -> str:
        """Why no round may follow; empty if one may, or is on."""
        return "" if self._round.batches else self._spending.why_ended(self._anchor_step)

    @property
    def epsilon(self) -> float:
        """Spent so far."""
        return self._spending.epsilon

    def attach(self, subject: Subject) -> None:
        """Take what is to be synchronised.

        Raises:
            PrivacyBudgetError: something besides the moves would leave the device; the text names it.

        """
        super().attach(subject)
        self._spending.check_subject(subject, self._tensors)
        told = self._scope.specs()
        if told:
            scope = self._scope.options["curvature_scope"]
            raise PrivacyBudgetError(
                f"the curvature scope {scope!r} tells other devices of this device's data (the {told[0]}), which a "
                "privacy budget does not cover: take the scope 'local'"
            )

    def extend(self) -> None:
        """Take note of parameters that have come since."""
        super().extend()
        self._noise = ClippedNoise(self._spending.budget, sum(sum(vector.sizes) for vector in self._moves))

    def join(self, options: Mapping[str, str]) -> None:
        """Take this device's place.

        Raises:
            PrivacyBudgetError: the session sums up fewer devices' noise than the budget needs.

        """
        super().join(options)
        self._spending.join(self._place)

    def before_update(self, report: Report) -> Update:
        """Return the device's own gradients and curvature, for a step of its own.

        Raises:
            PrivacyBudgetError: the budget is spent.

        """
        self._spending.pay_missed(self._place.step)
        if self.ended:
            raise PrivacyBudgetError(self.ended)
        return super().before_update(report)

    def state_dict(self) -> dict[str, Any]:
        """Return where this device stands in the round, and what it has spent."""
        return super().state_dict() | {"privacy": self._spending.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in a round, and go on counting; what another plan had still to send stays here, without noise."""
        super().load_state_dict({name: value for name, value in state.items() if name not in ("sent", "unsent")})
        self._spending.load_state_dict(state.get("privacy", {}), state["step"])

    # ------------------------------------------------------------------ inner workings

    def _send(self, taken: Round) -> SentRound:
        """Send a round as one of one sample, so that each device weighs the same; the loss stays."""
        self._spending.pay(self._place.step, taken.batches)
        self._evaluation = None
        return super()._send(replace(taken, samples=1, loss=math.nan))

    @torch.no_grad()
    def _hand_over(self, sent: SentRound, evaluation: Evaluation | None = None, *, is_repeated: bool = False) -> None:
        """Give the exchange a round's move, clipped and noised; nothing else of the data goes with it."""
        place = self._place
        before = {parameter: self._anchor[name] for parameter, name in self._tensors.names.items()}
        move = torch.cat([vector.gather(before).cpu() for vector in self._moves]).numpy()
        try:
            noised = torch.from_numpy(self._noise.release(move).astype(np.float32))
        except ValueError:
            raise NonFiniteGradientError(self._exchange.device, "move of a round", self.step) from None
        place.begin(sent.samples, is_repeated=is_repeated)
        for vector, piece in zip(self._moves, torch.split(noised, [sum(v.sizes) for v in self._moves]), strict=True):
            place.contribute(vector.key, piece)
        for key, value in sent.told.items():
            place.contribute(key, value.cpu())
        place.complete(sent.loss, evaluation, sent.hyperparameters, sent.batches)
        self._meter.complete()

    def _move_of(self, mean: Tensor) -> Tensor:
        """Return the move that a mean of integers stands for."""
        return mean * self._noise.grid
