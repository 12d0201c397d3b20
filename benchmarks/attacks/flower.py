"""Flower's robust strategies under the same attacks: rounds of local SGD, combined by Flower's own functions."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from flwr.server.strategy.aggregate import (
    aggregate,
    aggregate_bulyan,
    aggregate_krum,
    aggregate_median,
    aggregate_trimmed_avg,
)
from torch import Tensor, nn

from benchmarks.attacks.attacks import Attack, Sent
from benchmarks.attacks.data import Fleet
from edge_client.exchange import TensorKey
from edge_client.training.evaluation import evaluate
from edge_client.training.trainer import build_model

ROUNDS = 12
LOCAL_STEPS = 10
RATES = (0.03, 0.1, 0.3)
"""Of which the best without an attack is taken, on seed 0."""
MOMENTUM = 0.9

Results = list[tuple[list[np.ndarray], int]]
Strategy = Callable[[Results, int], list[np.ndarray]]

STRATEGIES: Mapping[str, Strategy] = {
    "FedAvg": lambda results, _: aggregate(results),
    "Krum": lambda results, bad: aggregate_krum(results, bad, 0),
    "MultiKrum": lambda results, bad: aggregate_krum(results, bad, len(results) - bad),
    "Bulyan": lambda results, bad: aggregate_bulyan(results, bad, aggregate_krum, to_keep=0),
    "FedMedian": lambda results, _: aggregate_median(results),
    "FedTrimmedAvg": lambda results, bad: aggregate_trimmed_avg(results, bad / len(results)),
}
"""As Flower's classes of these names call them. They are told how many devices are bad, at least one."""
BULYAN_BEARS = 1
"""It needs 4 f + 3 devices: eight bear one."""


def accuracy(
    fleet: Fleet, strategy: str, attack: Attack, bad: int, seed: int, rate: float, rounds: int = ROUNDS
) -> float:
    """Return the accuracy that devices reach with a strategy of Flower while some of them attack."""
    model = build_model(fleet.task, seed)
    names = list(model.state_dict())
    told = max(bad, 1)
    for number in range(rounds):
        anchor = {name: value.clone() for name, value in model.state_dict().items()}
        sent = []
        for device in range(fleet.devices):
            model.load_state_dict(anchor)
            samples = _train(fleet, model, device, number * LOCAL_STEPS, rate)
            sent.append(Sent(samples, _moves(model, anchor)))
        results: Results = [
            ([_moved(anchor, own, name) for name in names], own.samples) for own in attack.apply(sent, bad)
        ]
        combined = STRATEGIES[strategy](results, told)
        model.load_state_dict({name: torch.from_numpy(np.asarray(v)) for name, v in zip(names, combined, strict=True)})
    return evaluate(model, fleet.task, fleet.test).accuracy


def _train(fleet: Fleet, model: nn.Module, device: int, first: int, rate: float) -> int:
    """Take a device's local steps, and return how many samples it saw."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM)
    samples = 0
    for step in range(first, first + LOCAL_STEPS):
        inputs, targets = fleet.batch(device, step)
        optimizer.zero_grad()
        fleet.task.loss(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        samples += len(targets)
    return samples


def _moves(model: nn.Module, anchor: Mapping[str, Tensor]) -> dict[TensorKey, Tensor]:
    return {("delta", name): value - anchor[name] for name, value in model.state_dict().items()}


def _moved(anchor: Mapping[str, Tensor], own: Sent, name: str) -> np.ndarray:
    value: np.ndarray = (anchor[name] + own.tensors["delta", name]).numpy()
    return value
