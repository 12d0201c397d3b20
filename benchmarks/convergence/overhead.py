"""What a second-order step costs over a step of SGD with momentum: time and memory, at batch 128.

Steps that update and invert the curvature and those in between are timed apart, and weighed by how many of each the
default schedule has. The optimizers take turns, step by step, so that what else the machine does strikes all alike, and
processor time of one thread is measured.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.convergence.learning_tasks import digits
from benchmarks.convergence.resnet import resnet18
from benchmarks.shared.results import markdown_table, save_results
from edge_client import NewtonOptimizer, Refresh
from edge_client.curvature import ESTIMATORS
from edge_client.optim.refresh import RefreshSchedule

BATCH = 128
_SGD = "SGD with momentum"
_HEADLINE = "first 1000 steps"
_LR = 1e-9
"""All stay at the weights that they begin with: how long max pooling takes depends on the values that it compares."""
_WARMUP = 2
"""Steps with curvature, the first of which also allocates."""


@dataclass(frozen=True)
class Cost:
    """A step of one optimizer on one network."""

    network: str
    device: str
    optimizer: str
    plain_ms: float
    curvature_ms: float
    """A step that updates and inverts the curvature."""
    ratios: Mapping[str, float]
    """Mean step over that of SGD, by the steps that the mean is of."""
    state_mib: float


def shares() -> dict[str, float]:
    """Return the share of steps with curvature, by which steps are meant."""
    schedule = RefreshSchedule(Refresh())
    schedule.begin(0)
    of_first = {n: sum(schedule.updates_factors(step) for step in range(n)) / n for n in (100, 1000)}
    every = Refresh().factor_every
    return {f"first {n} steps": share for n, share in of_first.items()} | {
        f"later, every {every}": 1 / every,
        "every 10": 0.1,
    }


class Timed:
    """One optimizer that trains one model.

    Args:
        network: makes the model.
        inputs: of every batch.
        make: makes the optimizer.

    """

    def __init__(
        self, network: Callable[[], nn.Module], inputs: Tensor, make: Callable[[nn.Module], torch.optim.Optimizer]
    ) -> None:
        torch.manual_seed(0)
        self._model = network().to(inputs.device)
        self._inputs = inputs
        self._targets = torch.arange(BATCH, device=inputs.device) % 10
        self._optimizer = make(self._model)

    def step(self) -> float:
        """Take a step, and return its milliseconds."""
        began = _now(self._inputs.device)
        self._optimizer.zero_grad()
        nn.functional.cross_entropy(self._model(self._inputs), self._targets).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return 1000 * (_now(self._inputs.device) - began)

    @property
    def state_mib(self) -> float:
        """Size of the optimizer's state."""
        state = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(self._optimizer.state_dict()))
        return state / 2**20


def measure(
    name: str, network: Callable[[], nn.Module], inputs: Tensor, estimators: list[str], cycles: int, cycle: int
) -> list[Cost]:
    """Compare estimators with SGD on one network; of `cycle` steps the first one has curvature."""
    device = inputs.device.type
    refresh = Refresh(warmup_steps=_WARMUP, factor_every=cycle, inverse_every=cycle, growth=1)
    sgd = Timed(network, inputs, lambda model: torch.optim.SGD(model.parameters(), lr=_LR, momentum=0.9))
    ours = {
        estimator: Timed(
            network,
            inputs,
            lambda model, estimator=estimator: NewtonOptimizer(model, _LR, curvature=estimator, refresh=refresh),  # type: ignore[misc]
        )
        for estimator in estimators
    }
    for timed in (sgd, *ours.values()):
        for _ in range(_WARMUP):
            timed.step()
    of_sgd: list[float] = []
    curvature: dict[str, list[float]] = {estimator: [] for estimator in ours}
    plain: dict[str, list[float]] = {estimator: [] for estimator in ours}
    for _ in range(cycles):
        for number in range(cycle):
            of_sgd.append(sgd.step())
            for estimator, timed in ours.items():
                (plain if number else curvature)[estimator].append(timed.step())
    base = statistics.median(of_sgd)
    costs = [Cost(name, device, _SGD, base, base, dict.fromkeys(shares(), 1.0), sgd.state_mib)]
    for estimator, timed in ours.items():
        between, with_curvature = statistics.median(plain[estimator]), statistics.median(curvature[estimator])
        ratios = {steps: (between + (with_curvature - between) * share) / base for steps, share in shares().items()}
        costs.append(Cost(name, device, estimator, between, with_curvature, ratios, timed.state_mib))
    return costs


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="The small network only; writes no results.")] = False,
) -> None:
    """Measure the overhead; write JSON and a table to benchmarks/results."""
    torch.set_num_threads(1)
    task = digits()
    images = torch.cat([device.inputs for device in task.devices])[:BATCH]
    costs = measure("digits CNN", task.build, images, list(ESTIMATORS), cycles=12, cycle=5)
    if not quick:
        pictures = torch.randn(BATCH, 3, 32, 32)
        costs += measure("ResNet-18", resnet18, pictures, ["kfac"], cycles=2, cycle=2)
        if torch.cuda.is_available():
            every = list(ESTIMATORS)
            costs += measure("digits CNN", task.build, images.cuda(), every, cycles=12, cycle=5)
            costs += measure("ResNet-18", resnet18, pictures.cuda(), every, cycles=4, cycle=5)
    means = list(shares())
    header = ["network", "on", "optimizer", "plain step, ms", "with curvature, ms", *means, "state, MiB"]
    rows = [
        [
            c.network,
            c.device,
            c.optimizer,
            f"{c.plain_ms:.1f}",
            f"{c.curvature_ms:.1f}",
            *(f"{c.ratios[steps]:.2f}" for steps in means),
            f"{c.state_mib:.1f}",
        ]
        for c in costs
    ]
    print(markdown_table(header, rows))
    figures = {
        f"overhead_{c.network.split()[0].lower().replace('-', '')}_{c.optimizer}": round(c.ratios[_HEADLINE], 2)
        for c in costs
        if c.optimizer == "kfac" and c.device == "cpu"
    }
    print(json.dumps(figures, indent=1))
    if not quick:
        print(save_results("overhead", figures, {"batch": BATCH, "costs": [asdict(cost) for cost in costs]}))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
