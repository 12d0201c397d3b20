"""Local steps with the curvature of all devices together: averaged with the moves, in the rounds in which it is due."""

from collections.abc import Mapping
from typing import Any

import torch
from edgenewton.v1.tensor_spec import TensorSpec

from edge_client.curvature.estimators import Statistics
from edge_client.curvature.schedule import is_on_log_schedule
from edge_client.exchange import Contributions, StepResult
from edge_client.sync.plan import Subject
from edge_client.sync.scope import CurvatureScope, own_statistics


class Shared(CurvatureScope):
    """Statistics of each device's first batch in the rounds 0, 1, 2, 3, 5, 8, ..., used from the next round on."""

    def __init__(self) -> None:
        self._rounds = 0
        self._own: dict[str, Statistics] = {}
        self._mean: dict[str, Statistics] = {}
        """Of the last round that had them."""
        self._is_new = False
        """Whether no step has used the mean yet."""
        self._is_told = False
        """Whether this device has told its part of the round whose mean comes next, and is in the round after it."""

    @property
    def options(self) -> Mapping[str, object]:
        """Whose curvature is used."""
        return {"curvature_scope": "shared"}

    def attach(self, subject: Subject) -> None:
        """Take what is trained."""
        self._subject = subject

    def wants_batch(self, *, by_schedule: bool, is_first: bool) -> bool:  # noqa: ARG002
        """In the first batch of a round in which the devices tell each other."""
        return is_first and is_on_log_schedule(self._round)

    def statistics(self, step: int, loss_scale: float, *, is_first: bool) -> dict[str, Statistics]:
        """Return the mean that came with the last round; those of the batch that is on are told at the round's end."""
        personal: dict[str, Statistics] = {}
        if is_first and is_on_log_schedule(self._round):
            self._own = own_statistics(self._subject, step, loss_scale)
            personal = {state.name: self._own.pop(state.name) for state in self._subject.personal_layers}
        is_new, self._is_new = self._is_new, False
        return {**(self._mean if is_new else {}), **personal}

    def refreshes(self, *, is_first: bool) -> bool | None:
        """Once the curvature has changed."""
        return is_first and is_on_log_schedule(self._rounds - 1)

    @property
    def in_common(self) -> Mapping[str, Statistics]:
        """The mean of all devices'."""
        return self._mean

    def specs(self) -> list[TensorSpec]:
        """Return the statistics of all layers."""
        return [
            TensorSpec(
                f"{state.name}:{name}",
                shape,
                kind="curvature",
                structure=state.estimator.statistic_structures.get(name, ""),
            )
            for state in self._subject.common_layers
            for name, shape in state.estimator.statistic_shapes.items()
        ]

    def contribute(self, place: Contributions) -> None:
        """Tell the statistics in the rounds in which they are due; zeros if every batch was skipped."""
        self._is_told = True
        if not is_on_log_schedule(self._rounds):
            return
        for state in self._subject.common_layers:
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
                for state in self._subject.common_layers
            }
            self._is_new = True
        self._rounds += 1
        self._is_told = False

    @property
    def _round(self) -> int:
        """Number of the round that is on."""
        return self._rounds + self._is_told

    def state_dict(self) -> dict[str, Any]:
        """Return the mean, and whether it is new."""
        mean = {name: dict(statistics) for name, statistics in self._mean.items()}
        return {"rounds": self._rounds, "mean": mean, "is_new": self._is_new}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        if state:
            self._rounds = state["rounds"]
            self._mean, self._is_new = dict(state["mean"]), state["is_new"]

    def own_state_dict(self) -> dict[str, Any]:
        """Return the statistics that are still to be told, and which round is on."""
        own = {name: dict(statistics) for name, statistics in self._own.items()}
        return {"statistics": own, "is_told": self._is_told}

    def load_own_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `own_state_dict` gave."""
        self._own, self._is_told = dict(state.get("statistics", {})), state.get("is_told", False)
