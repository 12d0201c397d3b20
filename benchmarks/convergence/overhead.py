"""What a second-order step costs over a step of SGD with momentum: time and memory, at batch 128.

Steps that update and invert the curvature and those in between are timed apart, and weighed by the default intervals.
Processor time of one thread is measured, which does not depend on what else the machine does.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
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

BATCH = 128


@dataclass(frozen=True)
class Cost:
    """A step of one optimizer on one network."""

    network: str
    device: str
    optimizer: str
    interval: int
    """Steps between two that update and invert the curvature."""
    plain_ms: float
    curvature_ms: float
    """A step that updates and inverts the curvature."""
    ratio: float
    """Mean step over that of SGD."""
    state_mib: float


def step_times(
    network: Callable[[], nn.Module], inputs: Tensor, make: Callable[[nn.Module], torch.optim.Optimizer], steps: int
) -> tuple[list[float], float]:
    """Return the milliseconds of each step, and the MiB of the optimizer's state after them."""
    torch.manual_seed(0)
    model = network().to(inputs.device)
    optimizer = make(model)
    targets = torch.arange(BATCH, device=inputs.device) % 10
    times = []
    for _ in range(steps):
        began = _now(inputs.device)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        times.append(1000 * (_now(inputs.device) - began))
    state = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(optimizer.state_dict()))
    return times, state / 2**20


def measure(
    name: str,
    network: Callable[[], nn.Module],
    inputs: Tensor,
    estimators: list[str],
    intervals: list[int],
    repeats: int,
) -> list[Cost]:
    """Compare estimators with SGD on one network."""
    device = inputs.device.type
    times, memory = step_times(
        network, inputs, lambda model: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9), repeats + 1
    )
    sgd = statistics.median(times[1:])
    costs = [Cost(name, device, "SGD with momentum", 1, sgd, sgd, 1.0, memory)]
    for estimator in estimators:
        # Two steps with curvature (the first of which also allocates), then plain ones.
        times, memory = step_times(
            network,
            inputs,
            lambda model, estimator=estimator: NewtonOptimizer(  # type: ignore[misc]
                model, 1e-3, curvature=estimator, refresh=Refresh(warmup_steps=2, factor_every=1000, inverse_every=1000)
            ),
            repeats + 3,
        )
        curvature, plain = times[1], statistics.median(times[3:])
        for interval in intervals:
            mean = plain + (curvature - plain) / interval
            costs.append(Cost(name, device, estimator, interval, plain, curvature, mean / sgd, memory))
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
    default = 10
    costs = measure("digits CNN", task.build, images, list(ESTIMATORS), [default], repeats=30)
    if not quick:
        pictures = torch.randn(BATCH, 3, 32, 32)
        costs += measure("ResNet-18", resnet18, pictures, ["kfac", "eva"], [default, 50, 100], repeats=3)
        if torch.cuda.is_available():
            every = list(ESTIMATORS)
            costs += measure("digits CNN", task.build, images.cuda(), every, [default], repeats=30)
            costs += measure("ResNet-18", resnet18, pictures.cuda(), every, [default, 50, 100], repeats=10)
    header = [
        "network",
        "on",
        "optimizer",
        "interval",
        "plain step, ms",
        "with curvature, ms",
        "over SGD",
        "state, MiB",
    ]
    rows = [
        [
            c.network,
            c.device,
            c.optimizer,
            c.interval,
            f"{c.plain_ms:.1f}",
            f"{c.curvature_ms:.1f}",
            f"{c.ratio:.2f}",
            f"{c.state_mib:.1f}",
        ]
        for c in costs
    ]
    print(markdown_table(header, rows))
    figures = {
        f"overhead_{c.network.split()[0].lower().replace('-', '')}_{c.optimizer}": round(c.ratio, 2)
        for c in costs
        if c.optimizer == "kfac" and c.interval == default and c.device == "cpu"
    }
    print(json.dumps(figures, indent=1))
    if not quick:
        print(save_results("overhead", figures, {"batch": BATCH, "costs": [asdict(cost) for cost in costs]}))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
