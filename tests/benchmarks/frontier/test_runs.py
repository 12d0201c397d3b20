"""The runs of the frontier benchmark do what Flower and the convergence benchmark do, where nothing is compressed."""

import pytest
import torch
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM
from torch import nn

from benchmarks.convergence.methods import FederatedRun
from benchmarks.convergence.methods import SynchronousRun as UnionRun
from benchmarks.convergence.trials import DeviceBatches, learning_task
from benchmarks.frontier.compression import Compression
from benchmarks.frontier.local_steps import LocalRun, Plan
from benchmarks.frontier.methods import METHODS
from benchmarks.frontier.server_adam import ServerAdam
from benchmarks.frontier.synchronous import SynchronousRun

STEPS, ROUNDS, LR = 3, 4, 0.05


def built() -> nn.Module:
    torch.manual_seed(0)
    return learning_task("digits").build()


def rounds(steps: int):
    data = DeviceBatches(learning_task("digits"), seed=0)
    return [[data.step(number * steps + step) for step in range(steps)] for number in range(ROUNDS)]


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("strategy", "outer"),
    [
        (FedAvg(), lambda model: torch.optim.SGD(model.parameters(), lr=1.0)),
        (FedAdam(eta=0.02, eta_l=LR, beta_1=0.9, beta_2=0.99), lambda model: ServerAdam(model.parameters(), lr=0.02)),
        (
            FedAvgM(server_learning_rate=0.7, server_momentum=0.5),
            lambda model: torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.5),
        ),
    ],
    ids=["FedAvg", "FedAdam", "FedAvgM"],
)
def test_local_steps_agree_with_flower(strategy, outer):
    task = learning_task("digits")
    flowers = FederatedRun(built(), task, strategy, LR)
    if isinstance(strategy, FedAvgM):
        from flwr.app import ArrayRecord

        strategy.current_arrays = ArrayRecord(flowers.model.state_dict())
    plan = Plan(
        STEPS,
        lambda model: [torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)],
        outer,
        Compression(),
        keeps_inner=False,
    )
    run = LocalRun(built(), task, 0, plan)

    for batches in rounds(STEPS):
        flowers.round(batches)
        cost = run.round()

    assert_same(run.model, flowers.model)
    assert cost.batches == STEPS
    assert cost.each_way == 4 * sum(parameter.numel() for parameter in run.model.parameters())


def test_gradients_of_every_batch_agree_with_the_union_of_the_batches():
    task = learning_task("digits")
    union_model, model = built(), built()
    union = UnionRun(union_model, task, [torch.optim.SGD(union_model.parameters(), lr=LR, momentum=0.9)])
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    run = SynchronousRun(model, task, 0, [optimizer], Compression())

    for batches in rounds(1):
        union.round(batches)
        run.round()

    assert_same(run.model, union.model)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_trains(method):
    task = learning_task("digits")
    run = method.start(built(), task, {name: grid.start for name, grid in method.space.items()}, 0)
    size = 4 * sum(parameter.numel() for parameter in run.model.parameters())

    cost = run.round()

    assert (cost.each_way < size) == method.is_compressed
    assert all(bool(parameter.isfinite().all()) for parameter in run.model.parameters())


def test_buffers_are_averaged_and_counted():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)
            self.layer = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.norm(x.view(-1, 1, 8, 8)).flatten(1))

    task = learning_task("autoencoder")
    torch.manual_seed(0)
    model = Normed()
    plan = Plan(
        2,
        lambda model: [torch.optim.SGD(model.parameters(), lr=0.01)],
        lambda model: torch.optim.SGD(model.parameters(), lr=1.0),
        Compression(),
    )

    class Classified:
        devices = task.devices

        @staticmethod
        def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return outputs.square().mean()

    local = LocalRun(model, Classified(), 0, plan)  # type: ignore[arg-type]
    cost = local.round()

    assert cost.up == cost.down == 4 * (64 * 10 + 10 + 1 + 1) + 4 * 2
    means = [device.norm.running_mean for device in local._devices]
    torch.testing.assert_close(local.model.norm.running_mean, sum(means) / len(means))
