"""Local steps with the curvature of all devices together: averaged with the moves, in the rounds in which it is due."""

from collections.abc import Mapping
from typing import Any

import torch
from edgenewton.v1.tensor_spec import TensorSpec

from edge_client.curvature.estimators import Statistics
from edge_client.curvature.schedule import is_on_log_schedule
from edge_client.curvature.whitening import Whitening
from edge_client.exchange import Membership, StepResult
from edge_client.sync.common_curvature import CommonCurvature
from edge_client.sync.plan import Subject
from edge_client.sync.scope import CurvatureScope, own_statistics


class Shared(CurvatureScope):
    """Statistics of each device's first batch in the rounds 0, 1, 2, 3, 5, 8, ..., used from the next round on.

    Args:
        whiten: see `Probed`.

    """

    def __init__(self, *, whiten: bool = False) -> None:
        self._whitens = whiten
        self._rounds = 0
        self._own: dict[str, Statistics] = {}
        self._mean: dict[str, Statistics] = {}

    @property
    def options(self) -> Mapping[str, object]:
        """Whose curvature is used, and whether moves are written in its coordinates."""
        return {"curvature_scope": "shared", "whiten": self._whitens}

    def attach(self, subject: Subject) -> None:
        """Take what is trained."""
        self._subject = subject
        self._common = CommonCurvature(subject)

    def wants_batch(self, *, by_schedule: bool, is_first: bool) -> bool:  # noqa: ARG002
        """In the first batch of a round in which the devices tell each other."""
        return is_first and is_on_log_schedule(self._rounds)

    def statistics(self, step: int, loss_scale: float, *, is_first: bool) -> dict[str, Statistics]:
        """Return the mean that came with the last round; those of the batch that is on are told at the round's end."""
        if is_first and is_on_log_schedule(self._rounds):
            self._own = own_statistics(self._subject, step, loss_scale)
        mean, self._mean = self._mean, {}
        return mean

    def refreshes(self, *, is_first: bool) -> bool | None:
        """Once the curvature has changed."""
        return is_first and is_on_log_schedule(self._rounds - 1)

    def whitening(self, layer: str) -> Whitening | None:
        """Return a layer's coordinates."""
        return self._common.whitening(layer)

    def specs(self) -> list[TensorSpec]:
        """Return the statistics of all layers."""
        return [
            TensorSpec(f"{state.name}:{name}", shape, kind="curvature")
            for state in self._subject.layers
            for name, shape in state.estimator.statistic_shapes.items()
        ]

    def contribute(self, place: Membership) -> None:
        """Tell the statistics in the rounds in which they are due; zeros if every batch was skipped."""
        if not is_on_log_schedule(self._rounds):
            return
        for state in self._subject.layers:
            own = self._own.get(state.name, {})
            for name, shape in state.estimator.statistic_shapes.items():
                value = own[name] if name in own else torch.zeros(shape)
                place.contribute(("curvature", f"{state.name}:{name}"), value)
        self._own = {}

    def receive(self, result: StepResult) -> None:
        """Take the mean."""
        if result.samples and is_on_log_schedule(self._rounds):
            self._mean = {
                state.name: {
                    name: result.tensors["curvature", f"{state.name}:{name}"].to(state.layer.weight)
                    for name in state.estimator.statistic_shapes
                }
                for state in self._subject.layers
            }
            if self._whitens:
                self._common.update(self._mean)
        self._rounds += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the common curvature, and what of it is new."""
        mean = {name: dict(statistics) for name, statistics in self._mean.items()}
        return {"rounds": self._rounds, "common": self._common.state_dict(), "mean": mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        if state:
            self._rounds = state["rounds"]
            self._common.load_state_dict(state["common"])
            self._mean = dict(state["mean"])

    def own_state_dict(self) -> dict[str, Any]:
        """Return the statistics that are still to be told."""
        return {name: dict(statistics) for name, statistics in self._own.items()}

    def load_own_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `own_state_dict` gave."""
        self._own = dict(state)
