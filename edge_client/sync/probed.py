"""Local steps with the curvature of a common probe, alone or blended with that of the device's own batches."""

from collections.abc import Mapping
from typing import Any

from edgenewton.common.options import check_number
from edgenewton.v1.tensor_spec import TensorSpec

from edge_client.curvature.estimators import Statistics
from edge_client.curvature.probe import Probe
from edge_client.curvature.schedule import next_on_log_schedule
from edge_client.exchange import Contributions, StepResult
from edge_client.sync.common_probe import CommonProbe
from edge_client.sync.plan import Subject
from edge_client.sync.scope import CurvatureScope, own_statistics


class Probed(CurvatureScope):
    """A new probe in the first round from each of the steps 0, 1, 2, 3, 5, 8, ... on: with time it changes ever less.

    Args:
        probe: the synthetic batch: see `CommonProbe`.
        share: of the probe in the curvature, above 0; the rest is the device's own.

    Raises:
        OptionError: the share is impossible.

    """

    def __init__(self, probe: Probe, share: float = 1.0) -> None:
        check_number("probe_share", share, above=0, at_most=1)
        self._probe = CommonProbe(probe)
        self._share = share
        self._of_round: dict[str, Statistics] = {}
        """Of the last probe, which stays until the next one."""
        self._first_step: int | None = None
        """In which there was the first probe."""
        self._probed_at = 0
        self._is_new = False
        """Whether the last probe is that of the round that is on."""

    @property
    def options(self) -> Mapping[str, object]:
        """Whose curvature is used, and which probe."""
        if self._share == 1:
            return {"curvature_scope": "probe", **self._probe.options}
        return {"curvature_scope": "blend", "probe_share": self._share, **self._probe.options}

    def attach(self, subject: Subject) -> None:
        """Take what is trained."""
        self._subject = subject

    def wants_batch(self, *, by_schedule: bool, is_first: bool) -> bool:
        """With a new probe, and as the schedule says, for the part that is the device's own."""
        is_due = by_schedule or (is_first and self._is_new)
        return is_due and (self._share < 1 or not self._of_round)

    def statistics(self, step: int, loss_scale: float, *, is_first: bool) -> dict[str, Statistics]:
        """Return the probe's of this round, blended with those of the batch that is on."""
        is_new = is_first and self._is_new
        if self._share == 1 and self._of_round:
            return self._of_round if is_new else {}
        if not (is_new or self._subject.updates_curvature(step)):
            return {}
        own = own_statistics(self._subject, step, loss_scale)
        return {name: self._blend(statistics, self._of_round.get(name)) for name, statistics in own.items()}

    def refreshes(self, *, is_first: bool) -> bool | None:
        """With a new probe, and for the part that is the device's own as the schedule says."""
        if is_first and self._is_new:
            return True
        return False if self._share == 1 and self._of_round else None

    def begin_round(self, step: int) -> None:
        """Probe the parameters that all devices share, if it is time."""
        self._is_new = False
        if self._first_step is not None and not self._is_due(step):
            return
        statistics = self._probe.statistics(self._subject, step)
        if statistics is not None:
            self._of_round, self._is_new, self._probed_at = statistics, True, step
            self._first_step = step if self._first_step is None else self._first_step

    @property
    def in_common(self) -> Mapping[str, Statistics]:
        """The probe's; through personal layers each device has its own."""
        return {} if self._subject.has_personal else self._of_round

    def specs(self) -> list[TensorSpec]:
        """Return what the probe's inputs are drawn by."""
        return self._probe.specs()

    def contribute(self, place: Contributions) -> None:
        """Tell it once."""
        self._probe.contribute(place)

    def receive(self, result: StepResult) -> None:
        """Take it."""
        self._probe.receive(result)

    def state_dict(self) -> dict[str, Any]:
        """Return the probe's inputs, its curvature, and that of the round that is on."""
        return {
            "probe": self._probe.state_dict(),
            "of_round": {} if self._subject.has_personal else self._saved(),
            "first_step": self._first_step,
            "probed_at": self._probed_at,
            "is_new": self._is_new,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        if state:
            self._probe.load_state_dict(state["probe"])
            self._of_round = dict(state["of_round"])
            self._first_step, self._probed_at = state["first_step"], state["probed_at"]
            self._is_new = state["is_new"]

    def own_state_dict(self) -> dict[str, Any]:
        """Return the probe's curvature, where it is not that of all devices."""
        return {"of_round": self._saved()} if self._subject.has_personal else {}

    def load_own_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `own_state_dict` gave; without it, from the device's own batches until the next probe."""
        if self._subject.has_personal:
            self._of_round = dict(state.get("of_round", {}))

    def _saved(self) -> dict[str, Any]:
        return {name: dict(statistics) for name, statistics in self._of_round.items()}

    def _is_due(self, step: int) -> bool:
        """Whether a scheduled step has come since the last probe."""
        assert self._first_step is not None
        return next_on_log_schedule(self._probed_at - self._first_step) <= step - self._first_step

    def _blend(self, own: Statistics, common: Statistics | None) -> Statistics:
        if common is None:
            return own
        return {name: value.lerp(common[name], self._share) for name, value in own.items()}
