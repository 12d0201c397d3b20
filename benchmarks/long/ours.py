"""Ours: the optimizer that users get, which takes the step of all devices together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any

from edgenewton.v1.tensor_spec import TensorSpec
from torch import nn

from benchmarks.long.training import Training, Variant, size_of
from edge_client import Curvature, EveryBatch, IterateAverage, NewtonOptimizer, Refresh, TrustRegion
from edge_client.exchange import InProcessExchange, StepResult
from edge_client.exchange.in_process import InProcessMembership
from edge_client.exchange.interface import Replica, Stages, no_stages
from edge_client.tasks import Task

Options = Mapping[str, float]


class ObservedExchange(InProcessExchange):
    """The exchange of a device alone, which remembers what the optimizer would agree on with others."""

    def __init__(self) -> None:
        super().__init__()
        self.specs: Mapping[tuple[str, str], TensorSpec] = {}
        self.options: Mapping[str, str] = {}

    def join(
        self,
        tensors: Sequence[TensorSpec],
        options: Mapping[str, str],
        replica: Replica,
        training_samples: int = 0,
        stages: Stages = no_stages,
    ) -> InProcessMembership:
        """Take note, and join."""
        self.specs = {(spec.kind, spec.name): spec for spec in tensors}
        self.options = dict(options)
        return super().join(tensors, options, replica, training_samples, stages)

    def bytes_of(self, result: StepResult) -> int:
        """Return what the tensors of a step take on the wire."""
        return sum(size_of(self.specs[key]) for key in result.tensors)


class NewtonTraining(Training):
    """One optimizer on the devices' gradients and curvature statistics, which it gets as passes of one batch.

    That is what `EveryBatch` gives all devices: its means over devices are the means over the union of their batches.

    Args:
        model: what is trained.
        task: whose loss it is.
        estimator: of the curvature.
        options: other values than the defaults, by their names in the optimizer or its groups of options.

    """

    def __init__(self, model: nn.Module, task: Task, estimator: str, options: Options) -> None:
        super().__init__(model, task)
        self._exchange = ObservedExchange()
        self.optimizer = NewtonOptimizer(
            model, sync=EveryBatch(self._exchange), **optimizer_options(estimator, options)
        )
        self.optimizer.zero_grad()

    def step(self) -> None:
        """Invert and update."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def follow(self) -> None:
        """Nothing is to be done: the optimizer averages in its step."""

    def evaluated(self) -> Iterator[tuple[Variant, nn.Module]]:
        """Yield the average, which is what the optimizer says is to be evaluated."""
        with self.optimizer.averaged():
            yield "averaged", self.model

    @property
    def bytes_of_step(self) -> int:
        """Gradients, and curvature where it was due."""
        result = self.optimizer.last_result
        return 0 if result is None else self._exchange.bytes_of(result)

    @property
    def settings(self) -> Mapping[str, str]:
        """What all devices of a session must have alike, whatever the model."""
        return {name: value for name, value in self._exchange.options.items() if not name.startswith("frozen")}

    @property
    def _hold(self) -> Callable[[], AbstractContextManager[None]]:
        return self.optimizer.no_sync


def settings_of(estimator: str, options: Options) -> Mapping[str, str]:
    """Return what the optimizer tells other devices of itself today; what was run with other defaults is run anew."""
    exchange = ObservedExchange()
    optimizer = NewtonOptimizer(nn.Linear(1, 1), sync=EveryBatch(exchange), **optimizer_options(estimator, options))
    optimizer.join()
    return exchange.options


def optimizer_options(estimator: str, options: Options) -> dict[str, Any]:
    """Return the arguments of the optimizer for options by name, such as `update_clip` or `growth`.

    Raises:
        ValueError: there is no such option.

    """
    groups: dict[str, dict[str, Any]] = {"trust": {}, "refresh": {}, "curvature": {}, "averaging": {}}
    of_group = {
        field.name: (name, str(field.type))
        for name, group in (
            ("trust", TrustRegion),
            ("refresh", Refresh),
            ("curvature", Curvature),
            ("averaging", IterateAverage),
        )
        for field in fields(group)
    }
    own: dict[str, float] = {}
    for name, value in options.items():
        if name in ("lr", "momentum", "weight_decay"):
            own[name] = value
        elif name in of_group:
            group, kind = of_group[name]
            groups[group][name] = int(value) if "int" in kind else value
        else:
            raise ValueError(
                f"ours have no option {name!r}; known are lr, momentum, weight_decay, {', '.join(of_group)}"
            )
    return {
        **own,
        "trust": TrustRegion(**groups["trust"]),
        "refresh": Refresh(**groups["refresh"]),
        "curvature": Curvature(estimator, **groups["curvature"]),
        "averaging": IterateAverage(**groups["averaging"]),
    }
