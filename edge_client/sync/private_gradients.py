"""An exchange after every batch under a privacy budget: all that leaves of a device's data are noised gradients.

What a step tells is the sum of the devices' clipped gradients with the noise of all. The curvature comes from a
synthetic batch at the weights that follow from such sums, so that it costs nothing of the budget. No loss, no
accuracy and no count of samples leaves.

Noise is equal in all directions, and a gradient is not. If its elements have the variances c_i, and are multiplied
with s_i before they are clipped to a bound on their norm and noised, then the noise of all of them, once that is
undone, has the variance (sum of s_i^2 c_i) (sum of 1 / s_i^2), which is least for s_i = c_i^(-1/4). A Fisher matrix
says what c_i is, in its eigenbasis. So gradients are written in coordinates in which its *root* is the unit matrix;
and it is the root, as in Adam, that preconditions them.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_client.curvature.estimators import Estimator, Statistics
from edge_client.curvature.estimators.kronecker import KroneckerEstimator
from edge_client.curvature.measured_inputs import MeasuredInputs
from edge_client.curvature.probe import Probe
from edge_client.curvature.whitening import restore_gradient, whiten_gradient
from edge_client.exchange import Exchange, NonFiniteGradientError, StepResult
from edge_client.privacy import ClippedNoise, PrivacyBudget, PrivacyBudgetError
from edge_client.privacy.discrete_gaussian import Integers
from edge_client.sync.gradients import nonfinite_gradient
from edge_client.sync.parts import Part
from edge_client.sync.plan import Report, Subject, Update
from edge_client.sync.probe_curvature import ProbeCurvature
from edge_client.sync.spending import Spending


class PrivateGradients(ProbeCurvature):
    """Averages clipped and noised gradients after every batch, with the curvature of a synthetic one.

    With the budget's unit "sample" the gradients come from `SampleGradients`, whose `backward` takes the place of the
    loss's, and a device's batches go through its samples pass by pass, with no sample twice in a pass.

    With secure aggregation the coordinator sees the sum alone; without, it sees each device's gradient with the
    device's share of the noise, which is too little to hide it, and must be trusted. Other devices see the sum.

    Args:
        exchange: the way to the other devices.
        budget: epsilon, delta, the bound on a gradient's norm, and for how many devices and exchanges the noise is.
        probe: the synthetic batch, whose inputs come from no device's data.
        batches_per_pass: with the unit "sample": in so many batches, from the first since this device joined on, each
            sample is once at most.
        follows_steps: whether passes begin at the steps that are multiples of `batches_per_pass` instead, as those do
            whose batches are told by the number of the step.

    Raises:
        OptionError: an option is impossible.
        PrivacyBudgetError: there are no other devices, or the probe's inputs are measured on the devices' data.

    """

    _kind = "noised"

    def __init__(
        self,
        exchange: Exchange,
        budget: PrivacyBudget,
        probe: Probe,
        *,
        batches_per_pass: int = 1,
        follows_steps: bool = False,
    ) -> None:
        # How many samples a device holds is of its data, too: it is told that there is one.
        super().__init__(probe, exchange, overlap=False, whiten=True, training_samples=1)
        self._batches_per_pass = batches_per_pass if budget.unit == "sample" else 1
        self._follows_steps = follows_steps
        self._batches = 0
        """Of this device that have left since it joined."""
        self._spending = Spending(exchange, budget, self._batches_per_pass)
        self._total: Tensor | None = None
        """With the unit "sample": the sum of the clipped gradients of the batch that is on."""
        self._taken = 0
        """Samples in it."""
        if isinstance(probe.inputs, MeasuredInputs):
            raise PrivacyBudgetError(
                "the probe's inputs follow moments of the devices' data, which a privacy budget does not cover: give "
                "it inputs of another source, such as the task's probe()"
            )

    @property
    def options(self) -> Mapping[str, object]:
        """Which probe, and under which budget."""
        return {**super().options, **self._spending.options}

    @property
    def budget(self) -> PrivacyBudget:
        """Under which it exchanges."""
        return self._spending.budget

    @property
    def ended(self) -> str:
        """Why no batch may follow; empty if one may."""
        return self._spending.why_ended(self.step)

    @property
    def has_left(self) -> bool:
        """Whether there is something of a batch that no step has been made of."""
        return super().has_left or self._total is not None

    @property
    def epsilon(self) -> float:
        """Spent so far."""
        return self._spending.epsilon

    def attach(self, subject: Subject) -> None:
        """Take what is to be synchronised.

        Raises:
            PrivacyBudgetError: something besides the gradients would leave the device; the text names it.

        """
        super().attach(subject)
        self._spending.check_subject(subject, self._tensors)

    def extend(self) -> None:
        """Take note of parameters that have come since."""
        super().extend()
        self._set_noise()

    def join(self, options: Mapping[str, str]) -> None:
        """Take this device's place.

        Raises:
            PrivacyBudgetError: the session sums up fewer devices' noise than the budget needs.

        """
        self._set_noise()
        super().join(options)
        self._spending.join(self._place)
        self._batches = 0

    def discard(self) -> None:
        """Forget the batch: see `EveryBatch.discard`."""
        self._total, self._taken = None, 0
        super().discard()

    def written(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return gradients `[n, *shape]` by the parameters' names in the coordinates of the exchange, `[n, elements]`.

        A parameter that is missing has none.
        """
        n = len(next(iter(gradients.values())))
        of = {p: gradients.get(name, p.new_zeros(1).expand(n, *p.shape)) for p, name in self._tensors.names.items()}
        parameters = list(of)
        flat: Tensor = torch.func.vmap(lambda *each: self._flat(dict(zip(parameters, each, strict=True))))(*of.values())
        return flat

    def take(self, total: Tensor, samples: int) -> None:
        """Take the sum of the clipped gradients of some samples of the batch that is on, `[elements]`.

        Raises:
            PrivacyBudgetError: the batch has more samples than the budget was made for.

        """
        taken = self._taken + samples
        if taken > self.budget.batch_size:
            raise PrivacyBudgetError(
                f"the batch has {taken} samples, and the privacy budget was made for {self.budget.batch_size}: "
                "take smaller batches, or a budget with a larger batch_size"
            )
        self._taken = taken
        self._total = total if self._total is None else self._total + total

    def before_update(self, report: Report) -> Update:
        """Contribute this device's clipped gradients with its share of the noise, and wait for the sum.

        Raises:
            NonFiniteGradientError: a gradient is NaN or infinite; nothing has left.
            PrivacyBudgetError: the budget is spent.

        """
        self._spending.pay_missed(self._place.step)
        if self.ended:
            raise PrivacyBudgetError(self.ended)
        skips = report.is_skipped or report.samples == 0
        if self.budget.unit == "sample" and self._total is None and not skips:
            raise PrivacyBudgetError(
                "the privacy budget is of samples, and nothing has clipped each one's gradient: call "
                "SampleGradients.backward(inputs, targets) in place of loss.backward()"
            )
        if not skips and (name := self._nonfinite()) is not None:
            if not self._subject.skips_nonfinite:
                raise NonFiniteGradientError(self._exchange.device, name, self.step)
            report = replace(report, samples=0)
        return super().before_update(replace(report, loss=math.nan, evaluation=None))

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the step that comes next, and what this device has spent."""
        return super().state_dict() | {"privacy": self._spending.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on, and go on counting; what another plan had still to send stays here, without noise."""
        super().load_state_dict({name: value for name, value in state.items() if name != "unsent"})
        self._spending.load_state_dict(state.get("privacy", {}), state["step"])

    # ------------------------------------------------------------------ inner workings

    def _set_noise(self) -> None:
        self._noise = ClippedNoise(self._spending.budget, sum(part.size for part in self._parts))

    def _begin(self, samples: int) -> None:  # noqa: ARG002
        super()._begin(1)  # each device weighs the same, and adds its noise, whether or not it has a batch

    def _skip_rest(self) -> None:
        """Take part with noise alone in what is left of the step of a batch that was given up."""
        self._subject.apply(self._skip())

    def _statistics(self, result: StepResult) -> dict[str, Statistics]:
        found = super()._statistics(result)
        estimators = {state.name: state.estimator for state in self._subject.layers}
        return {name: _root(estimators[name], statistics) for name, statistics in found.items()}

    @torch.no_grad()
    def _contribute_all(self, report: Report, *, skips: bool) -> None:  # noqa: ARG002
        if not skips:
            self._pay()
        noised = torch.from_numpy(self._noised(skips=skips).astype(np.float32))
        pieces = torch.split(noised, [part.size for part in self._parts])
        for part, piece in zip(self._parts, pieces, strict=True):
            self._contribute((self._kind, part.name), piece.view(part.shape))
        self._contribute_aligned()

    def _pay(self) -> None:
        number = (self.step if self._follows_steps else self._batches) % self._batches_per_pass
        # Not each batch has a step of its own: one whose step failed was followed by another in the same step.
        self._spending.pay(
            self.step, covers=self._batches_per_pass - number, is_anew=not self._follows_steps and not number
        )
        self._batches += 1

    def _noised(self, *, skips: bool) -> Integers:
        """Return what this device tells of its batch."""
        if skips:
            return self._noise.share(sum(part.size for part in self._parts))
        if self._total is not None:
            return self._noise.release((self._total / self.budget.batch_size).float().cpu().numpy())
        gradients = {p: p.grad if p.grad is not None else torch.zeros_like(p) for p in self._tensors.names}
        return self._noise.release(self._flat(gradients).float().cpu().numpy())

    def _flat(self, gradients: Mapping[Tensor, Tensor]) -> Tensor:
        """Return the parameters' gradients `[elements]` in the coordinates of the exchange."""
        flat = []
        for part in self._parts:
            gradient, by = part.gather(gradients), self._common.whitening(part.name)
            flat.append((gradient if by is None else whiten_gradient(gradient.to(by.G), by)).flatten())
        return torch.cat(flat)

    def _nonfinite(self) -> str | None:
        """Return what of the batch holds NaN or infinity, if anything."""
        if self._total is not None:
            return None if bool(self._total.isfinite().all()) else "sum of the samples' gradients"
        name = nonfinite_gradient(self._tensors.trained)
        return None if name is None else f"gradient of {name!r}"

    def _forget_batch(self) -> None:
        super()._forget_batch()
        self._total, self._taken = None, 0

    def _gradients_of(self, part: Part, mean: Tensor) -> dict[Tensor, Tensor]:
        gradient = mean * self._noise.grid
        by = self._common.whitening(part.name)
        return part.scatter(gradient if by is None else restore_gradient(gradient.to(by.G), by))


def _root(estimator: Estimator, statistics: Statistics) -> Statistics:
    """Return the statistics of the root of a layer's curvature; as they are, where it is no Kronecker product."""
    if not isinstance(estimator, KroneckerEstimator):
        return statistics
    factors = {"A": estimator.A, "G": estimator.G}
    return {name: factors[name].root(value) if name in factors else value for name, value in statistics.items()}
