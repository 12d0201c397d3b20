"""The methods that the convergence benchmark compares: ours, first-order ones, and published second-order peers."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_optimizer
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg
from torch import Tensor, nn

from benchmarks.convergence.learning_tasks import LearningTask
from edge_client import NewtonOptimizer, TrustRegion
from edge_client.curvature import ESTIMATORS

Family = Literal["ours", "first-order", "second-order peer"]
Batch = tuple[Tensor, Tensor]


# One line for each aggregation would hide the benchmark's own.
logging.getLogger("flwr").setLevel(logging.WARNING)


class Run(ABC):
    """One training of one model by one method."""

    @abstractmethod
    def round(self, batches: Sequence[Sequence[Batch]]) -> None:
        """Train a round: `batches[step][device]`."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The model as it is now."""

    def values_exchanged(self, parameters: int) -> int:
        """Return how many numbers a device sends (and receives) in the round that was trained last."""
        return parameters


class Method:
    """A method, with the one number that is tuned for each task.

    Args:
        name: as it stands in tables.
        family: what it is compared as.
        tuned: name of the tuned number.
        grid: values of it that are tried first; more are tried beyond an edge that is the best.
        start: begins a run with a model, its task and a value of the tuned number.
        local_steps: batches of each device in a round.

    """

    def __init__(
        self,
        name: str,
        family: Family,
        tuned: str,
        grid: Iterable[float],
        start: Callable[[nn.Module, LearningTask, float], Run],
        local_steps: int = 1,
    ) -> None:
        self.name = name
        self.family: Family = family
        self.tuned = tuned
        self.grid = tuple(grid)
        self.start = start
        self.local_steps = local_steps


class SynchronousRun(Run):
    """Every device's gradient after every batch: the same as training on the union of the batches."""

    def __init__(self, model: nn.Module, task: LearningTask, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._model = model
        self._task = task
        self._optimizers = optimizers

    @property
    def model(self) -> nn.Module:
        """The model that all devices share."""
        return self._model

    def round(self, batches: Sequence[Sequence[Batch]]) -> None:
        """Take a step on the union of the devices' batches."""
        for of_devices in batches:
            inputs = torch.cat([inputs for inputs, _ in of_devices])
            targets = torch.cat([targets for _, targets in of_devices])
            for optimizer in self._optimizers:
                optimizer.zero_grad()
            self._task.loss(self._model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            for optimizer in self._optimizers:
                optimizer.step()


class NewtonRun(SynchronousRun):
    """Ours: gradients after every batch, curvature statistics when they are due."""

    def __init__(self, model: nn.Module, task: LearningTask, **options: Any) -> None:
        self.optimizer = NewtonOptimizer(model, **options)
        super().__init__(model, task, [self.optimizer])

    def values_exchanged(self, parameters: int) -> int:  # noqa: ARG002
        """Return gradients and curvature statistics."""
        result = self.optimizer.last_result
        return sum(tensor.numel() for tensor in result.tensors.values()) if result is not None else 0


class FederatedRun(Run):
    """Local training of several batches, then Flower's own aggregation of the weights."""

    def __init__(self, model: nn.Module, task: LearningTask, strategy: FedAvg, lr: float) -> None:
        self._model = model
        self._task = task
        self._strategy = strategy
        self._lr = lr
        self._round = 0

    @property
    def model(self) -> nn.Module:
        """The aggregated model."""
        return self._model

    def round(self, batches: Sequence[Sequence[Batch]]) -> None:
        """Train each device on its batches of the round, and aggregate."""
        self._round += 1
        weights = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        if isinstance(self._strategy, FedAdam):
            self._strategy.current_arrays = {name: tensor.numpy() for name, tensor in weights.items()}
        replies = []
        for device in range(len(batches[0])):
            self._model.load_state_dict(weights)
            optimizer = torch.optim.SGD(self._model.parameters(), lr=self._lr, momentum=0.9)
            for of_devices in batches:
                inputs, targets = of_devices[device]
                optimizer.zero_grad()
                self._task.loss(self._model(inputs), targets).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            trained = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
            examples = MetricRecord({"num-examples": len(batches)})
            replies.append(_Reply(RecordDict({"arrays": ArrayRecord(trained), "metrics": examples})))
        arrays, _ = self._strategy.aggregate_train(self._round, replies)  # type: ignore[arg-type]
        if arrays is None:
            raise RuntimeError("Flower's strategy aggregated nothing")
        self._model.load_state_dict(arrays.to_torch_state_dict())


@dataclass(frozen=True)
class _Reply:
    """What Flower's strategies read of a client's message, which itself exists only within a Flower run."""

    content: RecordDict

    def has_error(self) -> bool:
        """Whether the client failed."""
        return False


def _synchronous(make: Callable[[nn.Module, float], Sequence[torch.optim.Optimizer]]) -> Callable[..., Run]:
    return lambda model, task, value: SynchronousRun(model, task, make(model, value))


def muon(model: nn.Module, lr: float, momentum: float = 0.95) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of hidden layers and AdamW for the rest, with rates that match in RMS."""
    names = dict(model.named_parameters())
    last = list(names)[-2:]
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    hidden = [p for name, p in names.items() if p.dim() == 2 and name not in last and id(p) not in embeddings]
    chosen = {id(p) for p in hidden}
    rest = [p for p in names.values() if id(p) not in chosen]
    return [
        torch.optim.Muon(hidden, lr=lr, weight_decay=0.0, momentum=momentum, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.0),
    ]


def _ours(**options: Any) -> Callable[..., Run]:
    return lambda model, task, value: NewtonRun(model, task, trust=TrustRegion(update_clip=value), **options)


def _untuned(estimator: str) -> Method:
    """Return one of our other estimators, with its own defaults."""
    clip = ESTIMATORS[estimator].defaults.update_clip
    return Method(f"EdgeNewton {estimator}, untuned", "ours", "update_clip", [clip], _ours(curvature=estimator))


_RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
_SGD_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
_PARTS = (0.0125, 0.025, 0.05, 0.1, 0.2)


def federated(local_steps: int, client_lr: float | None = None) -> Method:
    """Return Flower's FedAvg (its clients' rate is tuned) or, with a clients' rate, FedAdam (the server's is tuned)."""
    if client_lr is None:
        return Method(
            f"FedAvg, {local_steps} local",
            "first-order",
            "client lr",
            _SGD_RATES,
            lambda model, task, value: FederatedRun(model, task, FedAvg(), value),
            local_steps,
        )
    return Method(
        f"FedAdam, {local_steps} local, client lr {client_lr:g}",
        "first-order",
        "server lr",
        _RATES,
        lambda model, task, value: FederatedRun(
            model, task, FedAdam(eta=value, eta_l=client_lr, beta_1=0.9, beta_2=0.99), client_lr
        ),
        local_steps,
    )


METHODS = [
    Method("EdgeNewton kfac", "ours", "update_clip", _PARTS, _ours()),
    Method(
        "SGD with momentum",
        "first-order",
        "lr",
        _SGD_RATES,
        _synchronous(lambda model, lr: [torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)]),
    ),
    Method(
        "AdamW",
        "first-order",
        "lr",
        _RATES,
        _synchronous(lambda model, lr: [torch.optim.AdamW(model.parameters(), lr=lr)]),
    ),
    Method("Muon", "second-order peer", "lr", _RATES, _synchronous(muon)),
    Method(
        "SOAP",
        "second-order peer",
        "lr",
        _RATES,
        _synchronous(
            lambda model, lr: [
                pytorch_optimizer.SOAP(model.parameters(), lr=lr, weight_decay=0.0, precondition_frequency=1)
            ]
        ),
    ),
    *[federated(local_steps) for local_steps in (1, 5, 20)],
    Method(
        "Shampoo",
        "second-order peer",
        "lr",
        (0.003, 0.01, 0.03, 0.1, 0.3),
        _synchronous(
            lambda model, lr: [
                pytorch_optimizer.ScalableShampoo(
                    model.parameters(), lr=lr, start_preconditioning_step=5, preconditioning_compute_steps=5
                )
            ]
        ),
    ),
    *[_untuned(name) for name in ESTIMATORS if name != "kfac"],
]
"""FedAdam is not among them: its clients' rate is that which was best for FedAvg."""
