"""A probe that is the same on all devices: what its inputs are drawn by is averaged once, in their first exchange."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.curvature.estimators import Statistics
from edge_client.curvature.measured_inputs import MeasuredInputs
from edge_client.curvature.probe import Probe, ProbeError
from edge_client.exchange import Contributions, StepResult
from edge_client.sync.plan import Subject

log = logging.getLogger(__name__)

_PREFIX = "probe:"
"""Begins the names under which moments of the devices' inputs are averaged."""


class CommonProbe:
    """Gives the statistics of a probe at the parameters that all devices share.

    Args:
        probe: the synthetic batch. If its inputs are a `MeasuredInputs`, the devices average the moments in their first
            exchange, and nothing is probed before it.

    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._has_probed = False

    @property
    def options(self) -> Mapping[str, object]:
        """What must be equal on all devices."""
        return {"probe_samples": self._probe.samples, "probe_seed": self._probe.seed}

    @property
    def is_settled(self) -> bool:
        """Whether the inputs' moments are known."""
        inputs = self._measured
        return inputs is None or inputs.is_settled

    def specs(self) -> list[TensorSpec]:
        """Return the moments of the inputs."""
        moments = self._measured.moments if self._measured is not None else {}
        return [TensorSpec(_PREFIX + name, tuple(m.shape), kind="curvature") for name, m in moments.items()]

    def contribute(self, place: Contributions) -> None:
        """Tell the moments until all know them."""
        if self._measured is not None and not self._measured.is_settled:
            for name, moment in self._measured.moments.items():
                place.contribute(("curvature", _PREFIX + name), moment)

    def receive(self, result: StepResult) -> None:
        """Take the averaged moments from the step that has them."""
        if self._measured is not None and not self._measured.is_settled and result.samples:
            moments = self._measured.moments
            self._measured.settle({name: result.tensors["curvature", _PREFIX + name] for name in moments})

    @torch.enable_grad()
    def statistics(self, subject: Subject, step: int) -> dict[str, Statistics] | None:
        """Return each layer's statistics of a step's probe, or None if there is none.

        Raises:
            ProbeError: the probe does not suit the model: not even the first one does.

        """
        if not self.is_settled:
            return None
        try:
            # In the precision of the weights: autocast, which may be one device's alone, would make another curvature.
            device = subject.layers[0].layer.weight.device.type if subject.layers else "cpu"
            with subject.batch.paused(), torch.autocast(device, enabled=False):
                statistics = self._probe.statistics(subject.model, subject.layers, step)
        except ProbeError as error:
            if not self._has_probed:
                raise
            # All devices meet it alike.
            log.warning("step %d: the probe failed, and the curvature stays as it is: %s", step, error)
            return None
        self._has_probed = True
        return statistics

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged moments."""
        return {"moments": dict(self._measured.averaged) if self._measured is not None else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the moments that `state_dict` gave."""
        moments: Mapping[str, Tensor] = state.get("moments", {})
        if self._measured is not None and moments:
            self._measured.settle(moments)

    @property
    def _measured(self) -> MeasuredInputs | None:
        inputs = self._probe.inputs
        return inputs if isinstance(inputs, MeasuredInputs) else None
