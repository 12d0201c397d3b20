"""Curvature that all devices build alike, from the same probes: it costs no bytes, and tells nothing of anybody's data."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from edgenewton.common.options import check_number
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.curvature.estimators import Estimator, Statistics
from edge_client.curvature.linalg import CurvatureError
from edge_client.curvature.preconditioner import mean_curvature
from edge_client.curvature.probe import Probe, ProbeError
from edge_client.curvature.probe_inputs import MeasuredInputs
from edge_client.curvature.whitening import Whitening
from edge_client.exchange import Membership, StepResult
from edge_client.sync.plan import Subject
from edge_client.sync.schedule import is_on_log_schedule
from edge_client.sync.scope import CurvatureScope, own_statistics

log = logging.getLogger(__name__)

_PROBE = "probe:"
"""Begins the names under which moments of the devices' inputs are averaged."""


class Probed(CurvatureScope):
    """The curvature of a common probe, a new one for each round, blended with that of the device's own batches.

    The probe's part alone gives the coordinates in which moves are written. These are renewed in the rounds 0, 1, 2, 4,
    7, ... only: what the coordinator has still to send is written in them.

    Args:
        probe: the synthetic batch. If its inputs are a `MeasuredInputs`, the devices average the moments in their first
            exchange, and nothing is probed before it.
        share: of the probe in the curvature, above 0; the rest is the device's own.

    Raises:
        OptionError: the share is impossible.

    """

    def __init__(self, probe: Probe, share: float = 1.0) -> None:
        check_number("probe_share", share, above=0, at_most=1)
        self._probe = probe
        self._share = share
        self._rounds = 0
        self._of_round: dict[str, Statistics] = {}
        self._common: dict[str, Estimator] = {}
        self._whitening: dict[str, Whitening] = {}

    @property
    def options(self) -> Mapping[str, object]:
        """Whose curvature is used, and which probe."""
        scope = "probe" if self._share == 1 else "blend"
        own = {} if self._share == 1 else {"probe_share": self._share}
        return {"curvature_scope": scope, "probe_samples": self._probe.samples, "probe_seed": self._probe.seed, **own}

    def attach(self, subject: Subject) -> None:
        """Take what is trained."""
        self._subject = subject

    def wants_batch(self, *, by_schedule: bool, is_first: bool) -> bool:  # noqa: ARG002
        """In the first batch of a round, for the part that is the device's own."""
        return is_first and (self._share < 1 or not self.is_settled)

    def statistics(self, step: int, loss_scale: float, *, is_first: bool) -> dict[str, Statistics]:
        """Return the probe's of this round, blended with those of the batch that is on."""
        if not is_first:
            return {}
        if self._share == 1 and self._of_round:
            return self._of_round
        own = own_statistics(self._subject, step, loss_scale)
        if not self._of_round:
            return own
        return {
            name: {key: value.lerp(self._of_round[name][key], self._share) for key, value in statistics.items()}
            for name, statistics in own.items()
        }

    def refreshes(self, *, is_first: bool) -> bool | None:
        """Once a round."""
        return is_first

    @property
    def is_settled(self) -> bool:
        """Whether the inputs' moments are known."""
        inputs = self._probe.inputs
        return not isinstance(inputs, MeasuredInputs) or inputs.is_settled

    @torch.enable_grad()
    def begin_round(self, step: int) -> None:
        """Probe the parameters that all devices share."""
        if not self.is_settled:
            return
        subject = self._subject
        try:
            with subject.batch.paused():
                self._of_round = self._probe.statistics(subject.model, subject.layers, step)
        except ProbeError as error:
            if not self._rounds:
                raise
            # All devices meet it alike.
            log.warning("step %d: the probe failed, and the curvature stays as it is: %s", step, error)
            return
        with torch.no_grad():
            self._take_in()
        self._rounds += 1

    def whitening(self, layer: str) -> Whitening | None:
        """Return a layer's."""
        return self._whitening.get(layer)

    def specs(self) -> list[TensorSpec]:
        """Return the moments of the inputs."""
        return [TensorSpec(_PROBE + name, tuple(m.shape), kind="parameter") for name, m in self._moments().items()]

    def contribute(self, place: Membership) -> None:
        """Tell the moments until all know them."""
        if not self.is_settled:
            for name, moment in self._moments().items():
                place.contribute(("parameter", _PROBE + name), moment)

    def receive(self, result: StepResult) -> None:
        """Take the averaged moments."""
        inputs = self._probe.inputs
        if isinstance(inputs, MeasuredInputs) and not inputs.is_settled:
            inputs.settle({name: result.tensors["parameter", _PROBE + name] for name in inputs.moments})

    def state_dict(self) -> dict[str, Any]:
        """Return the common curvature, the coordinates, and the moments."""
        inputs = self._probe.inputs
        return {
            "rounds": self._rounds,
            "common": {name: estimator.state_dict() for name, estimator in self._common.items()},
            "whitening": {name: tuple(whitening) for name, whitening in self._whitening.items()},
            "of_round": {name: dict(statistics) for name, statistics in self._of_round.items()},
            "moments": dict(inputs.averaged) if isinstance(inputs, MeasuredInputs) else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        self._rounds = state.get("rounds", 0)
        self._of_round = dict(state.get("of_round", {}))
        self._whitening = {name: Whitening(*roots) for name, roots in state.get("whitening", {}).items()}
        self._common = self._new_estimators() if state.get("common") else {}
        for name, saved in state.get("common", {}).items():
            self._common[name].load_state_dict(saved)
        inputs = self._probe.inputs
        if isinstance(inputs, MeasuredInputs) and state.get("moments"):
            inputs.settle(state["moments"])

    def _moments(self) -> Mapping[str, Tensor]:
        inputs = self._probe.inputs
        return inputs.moments if isinstance(inputs, MeasuredInputs) else {}

    def _new_estimators(self) -> dict[str, Estimator]:
        return {
            state.name: type(state.estimator)(state.estimator.shape, state.estimator.options)
            for state in self._subject.layers
        }

    def _take_in(self) -> None:
        """Move the common curvature, and find the coordinates anew where that is due."""
        if not self._common:
            self._common = self._new_estimators()
        for state in self._subject.layers:
            # The gradient is that of estimators which exchange no statistics; these have no coordinates.
            if self._of_round[state.name]:
                gradient = state.layer.weight.new_zeros(state.layer.shape.of_gradient)
                self._common[state.name].update(self._of_round[state.name], gradient)
        if is_on_log_schedule(self._rounds):
            self._find_whitening()

    def _find_whitening(self) -> None:
        estimators = self._common.values()
        unit = mean_curvature((e.trace for e in estimators), (e.shape.size for e in estimators))
        for state in self._subject.layers:
            estimator = self._common[state.name]
            try:
                estimator.refresh(max(self._subject.damping_of(state.layer.weight) * unit, 1e-20))
                whitening = estimator.whitening()
            except CurvatureError as error:
                log.warning("layer %s: it keeps the coordinates that it has: %s", state.name, error)
                continue
            if whitening is not None:
                self._whitening[state.name] = whitening
