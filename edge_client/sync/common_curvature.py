"""Curvature that all devices build alike, from a common probe, and the coordinates that follow from it."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from edge_client.curvature.estimators import Estimator, Statistics
from edge_client.curvature.linalg import CurvatureError
from edge_client.curvature.preconditioner import SMALLEST_DAMPING, mean_curvature
from edge_client.curvature.schedule import is_on_log_schedule
from edge_client.curvature.whitening import Whitening
from edge_client.sync.plan import Subject

log = logging.getLogger(__name__)


class CommonCurvature:
    """A running estimate for each layer, fed with what is equal on all devices, and nothing else.

    The coordinates are renewed with the updates 0, 1, 2, 3, 5, 8, ... only: what the coordinator has still to send is
    written in them.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._updates = 0
        self._estimators: dict[str, Estimator] = {}
        self._whitening: dict[str, Whitening] = {}

    def whitening(self, layer: str) -> Whitening | None:
        """Return a layer's coordinates, if there are any yet."""
        return self._whitening.get(layer)

    @torch.no_grad()
    def update(self, statistics: Mapping[str, Statistics]) -> None:
        """Move the estimates, and find the coordinates anew where that is due."""
        self._estimators = self._new_estimators() | self._estimators
        for state in self._subject.common_layers:
            if statistics.get(state.name):
                # What the statistics do not tell, an estimator takes from the gradient; that of a probe says nothing.
                gradient = state.layer.weight.new_zeros(state.layer.shape.of_gradient)
                self._estimators[state.name].update(statistics[state.name], gradient)
        if is_on_log_schedule(self._updates):
            self._find_whitening()
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the estimates and the coordinates."""
        return {
            "updates": self._updates,
            "estimators": {name: estimator.state_dict() for name, estimator in self._estimators.items()},
            "whitening": {name: tuple(whitening) for name, whitening in self._whitening.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        self._updates = state["updates"]
        self._whitening = {name: Whitening(*roots) for name, roots in state["whitening"].items()}
        self._estimators = self._new_estimators() if state["estimators"] else {}
        for name, saved in state["estimators"].items():
            self._estimators[name].load_state_dict(saved)

    def _new_estimators(self) -> dict[str, Estimator]:
        return {
            state.name: type(state.estimator)(state.estimator.shape, state.estimator.options)
            for state in self._subject.common_layers
        }

    def _find_whitening(self) -> None:
        updated = [e for e in self._estimators.values() if e.updates]
        unit = mean_curvature((e.trace for e in updated), (e.shape.size for e in updated))
        for state in self._subject.common_layers:
            estimator = self._estimators[state.name]
            if not estimator.updates:
                continue
            damping = max(self._subject.damping_of(state.layer.weight) * unit, SMALLEST_DAMPING)
            try:
                estimator.refresh(damping)
                whitening = estimator.whitening()
            except CurvatureError as error:
                log.warning("layer %s: its moves are written as before: %s", state.name, error)
                continue
            if whitening is not None:
                self._whitening[state.name] = whitening
