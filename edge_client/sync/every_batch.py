"""An exchange after every batch, with the curvature of all devices together: they stay identical.

Each layer's tensors leave as soon as backward has produced them; `before_update` waits for the synchronised values.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.curvature.estimators import Statistics
from edge_client.curvature.preconditioner import PreconditionedLayer
from edge_client.exchange import Exchange, InProcessExchange, Membership, StepResult, TensorKey
from edge_client.sync.plan import Report, Subject, SyncPlan, Update
from edge_client.sync.replica import ModelReplica


class EveryBatch(SyncPlan):
    """Averages gradients after every batch, and curvature statistics in the steps that update the curvature.

    Buffers, such as running means, are each device's own until `average`.

    Args:
        exchange: the way to the other devices; None for one device alone.
        training_samples: how many private samples this device holds; the coordinator is told.

    """

    is_shared = True
    """Whether the weights are equal on all devices before every step."""

    def __init__(self, exchange: Exchange | None = None, *, training_samples: int = 0) -> None:
        self._exchange: Exchange = exchange if exchange is not None else InProcessExchange()
        self._training_samples = training_samples
        self._membership: Membership | None = None
        self._first_step = 0
        self._has_begun = False
        self._contributed: set[TensorKey] = set()

    @property
    def step(self) -> int:
        """Number of the step that is on, or comes next."""
        return self._membership.step if self._membership is not None else self._first_step

    @property
    def options(self) -> Mapping[str, object]:
        """Whose curvature is used."""
        return {"curvature_scope": "shared"}

    @property
    def is_joined(self) -> bool:
        """Whether this device has its place."""
        return self._membership is not None

    def attach(self, subject: Subject) -> None:
        """Take what is to be synchronised."""
        self._subject = subject
        self._names = {p: name for name, p in subject.model.named_parameters() if p.requires_grad}
        self._layer_of = {state.layer.weight: state for state in subject.layers}
        self.replica = ModelReplica(
            subject.model, is_shared=self.is_shared, apply=self._apply_missed, buffers=lambda: subject.batch.buffers
        )

    def specs(self) -> list[TensorSpec]:
        """Return gradients, statistics, numbers, and what `average` averages."""
        statistics = (
            _spec(("curvature", _statistic(state, name)), shape, state.layer.weight)
            for state in self._exchanged_layers
            for name, shape in state.estimator.statistic_shapes.items()
        )
        return [
            *(_spec(("gradient", name), parameter.shape, parameter) for parameter, name in self._names.items()),
            *statistics,
            *(TensorSpec(name, (1,), kind="curvature") for name in self._subject.scalars),
            *(_spec(("parameter", name), tensor.shape, tensor) for name, tensor in self._averaged().items()),
        ]

    def join(self, options: Mapping[str, str]) -> None:
        """Take this device's place: see `SyncPlan.join`."""
        self._membership = self._exchange.join(self.specs(), options, self.replica, self._training_samples)

    def on_gradient(self, parameter: Tensor) -> None:
        """Send a parameter's gradient, and with a weight its layer's statistics."""
        if ("gradient", self._names[parameter]) in self._contributed:  # type: ignore[index]
            raise RuntimeError(
                f"the gradient of {self._names[parameter]!r} was already sent in this step; wrap all but "  # type: ignore[index]
                "the last backward of a step in `with optimizer.no_sync():`"
            )
        state = self._layer_of.get(parameter)  # type: ignore[call-overload]
        if state is not None and self._updates_curvature:
            self._take_statistics(state)
        self._contribute_gradient(parameter)

    def before_update(self, report: Report) -> Update:
        """Complete this device's contribution, and wait for the synchronised tensors."""
        for parameter in self._names:
            self._contribute_gradient(parameter)
        if self._updates_curvature:
            for state in self._subject.layers:
                if not self._has_statistics(state):
                    self._take_statistics(state)
        for name, value in report.scalars.items():
            self._contribute(("curvature", name), torch.tensor([value]))
        if self._averages_in(self.step):
            self._contribute_averaged()
        return self._collect(report)

    def after_update(self) -> None:
        """Nothing is left to do: all was exchanged before."""

    def average(self) -> Update | None:
        """Average what differs between the devices, if there is anything, in a step of its own."""
        if not self._averaged():
            return None
        self._contribute_averaged()
        return self._collect(Report())

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the step that comes next."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a step, unless a coordinator has set it."""
        if self._membership is not None:
            self._membership.resume_at(state["step"])
        else:
            self._first_step = self.replica.next_step = state["step"]

    # ------------------------------------------------------------------ what another scope does otherwise

    @property
    def _exchanged_layers(self) -> Sequence[PreconditionedLayer]:
        """Layers whose statistics are exchanged."""
        return self._subject.layers

    def _averages_in(self, step: int) -> bool:  # noqa: ARG002
        """Whether a step averages what `_averaged` names, too."""
        return False

    def _averaged(self) -> dict[str, Tensor]:
        """Return, by name, the model's tensors that are averaged."""
        return {name: buffer for name, buffer in self._subject.model.named_buffers() if buffer.is_floating_point()}

    def _has_statistics(self, state: PreconditionedLayer) -> bool:
        """Whether a layer's statistics have been taken in the step that is on."""
        return all(key in self._contributed for key in self._statistic_keys(state))

    def _take_statistics(self, state: PreconditionedLayer) -> None:
        """Send a layer's statistics of the batch that is on."""
        for name, value in self._subject.batch.take_statistics(state, self.step).items():
            self._contribute(("curvature", _statistic(state, name)), value)

    def _statistics(self, result: StepResult) -> dict[str, Statistics]:
        """Return the statistics that a step updates the curvature with."""
        if not self._subject.updates_curvature(result.step):
            return {}
        return {
            state.name: {
                name: result.tensors["curvature", _statistic(state, name)].to(state.layer.weight.device)
                for name in state.estimator.statistic_shapes
            }
            for state in self._subject.layers
        }

    # ------------------------------------------------------------------ inner workings

    @property
    def _updates_curvature(self) -> bool:
        return self._subject.updates_curvature(self.step)

    def _statistic_keys(self, state: PreconditionedLayer) -> Iterable[TensorKey]:
        return (("curvature", _statistic(state, name)) for name in state.estimator.statistic_shapes)

    def _contribute(self, key: TensorKey, value: Tensor) -> None:
        if self._membership is None:
            raise RuntimeError("the optimizer has not joined: call optimizer.zero_grad() or the model before backward")
        if not self._has_begun:
            self._has_begun = True
            self._membership.begin(max(self._subject.batch.samples, 1))
        self._contributed.add(key)
        self._membership.contribute(key, value)

    def _contribute_gradient(self, parameter: Tensor) -> None:
        key = ("gradient", self._names[parameter])  # type: ignore[index]
        if key not in self._contributed:
            # A parameter that this batch did not use has no gradient; the other devices may have one.
            self._contribute(key, parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))

    def _contribute_averaged(self) -> None:
        for name, tensor in self._averaged().items():
            self._contribute(("parameter", name), tensor)

    def _collect(self, report: Report) -> Update:
        if self._membership is None:
            raise RuntimeError("the optimizer has not joined, and has nothing to collect")
        result = self._membership.collect(report.loss, report.evaluation)
        update = Update(result) if result.is_healed else self._received(result)
        self._forget_batch()
        return update

    def _forget_batch(self) -> None:
        self._subject.batch.forget()
        self._has_begun = False
        self._contributed = set()

    def _apply_missed(self, result: StepResult) -> None:
        self._subject.apply(self._received(result))

    def _received(self, result: StepResult) -> Update:
        """Load what was averaged, and return what is to be applied."""
        for name, tensor in self._averaged().items():
            if ("parameter", name) in result.tensors:
                with torch.no_grad():
                    tensor.copy_(result.tensors["parameter", name])
        gradients: dict[Tensor, Tensor] = {
            p: result.tensors["gradient", name].to(p.device)
            for p, name in self._names.items()
            if ("gradient", name) in result.tensors
        }
        scalars = {
            name: float(result.tensors["curvature", name])
            for name in self._subject.scalars
            if ("curvature", name) in result.tensors
        }
        return Update(result, gradients, self._statistics(result) if gradients else {}, scalars)


def _statistic(state: PreconditionedLayer, name: str) -> str:
    """Return the name under which a layer's statistic is exchanged."""
    return f"{state.name}:{name}"


def _spec(key: TensorKey, shape: Sequence[int], like: Tensor) -> TensorSpec:
    kind, name = key
    return TensorSpec(name, tuple(shape), str(like.dtype).removeprefix("torch."), kind)
