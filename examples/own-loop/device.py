"""A device's own training loop: a small model on the device's own data, in step with other devices.

Each device holds one moon of two, so that none of them could tell the moons apart alone.
"""

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edge_client import EveryBatch, GradientExchange, NewtonOptimizer


def moons(n: int, moon: int | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return points of two half circles that interlock, float32 `[n, 2]`, and which one each is of, int64 `[n]`."""
    targets = torch.randint(2, (n,), generator=generator) if moon is None else torch.full((n,), moon)
    angles = math.pi * torch.rand(n, generator=generator)
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    points = torch.where(targets.unsqueeze(1) == 1, torch.tensor([1.0, 0.5]) - points, points)
    return points + 0.1 * torch.randn(n, 2, generator=generator), targets


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, and return the accuracy on points of both moons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coordinator", default="127.0.0.1:50051", metavar="HOST:PORT")
    parser.add_argument("--session", default="moons")
    parser.add_argument("--device", required=True, help="this device's name")
    parser.add_argument("--moon", type=int, choices=(0, 1), required=True, help="the one that this device holds")
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args(arguments)

    generator = torch.Generator().manual_seed(given.moon)
    points, targets = moons(500, given.moon, generator)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    exchange = GradientExchange.connect(
        given.coordinator, session=given.session, device=given.device, run_steps=given.steps
    )
    optimizer = NewtonOptimizer(model, sync=EveryBatch(exchange))  # the first to join gives the others its weights
    for _ in range(given.steps):
        batch = torch.randint(len(points), (32,), generator=generator)
        optimizer.zero_grad()
        loss = cross_entropy(model(points[batch]), targets[batch])
        loss.backward()  # gradients leave layer by layer while backward still runs
        optimizer.report(loss.item())
        optimizer.step()  # waits for the last layer, inverts, updates
    optimizer.synchronise()
    exchange.close()

    points, targets = moons(1_000, None, torch.Generator().manual_seed(2))
    with torch.inference_mode(), optimizer.averaged():
        accuracy = (model(points).argmax(dim=1) == targets).float().mean().item()
    print(f"{given.device}: accuracy {accuracy:.1%} on both moons")
    return accuracy


if __name__ == "__main__":
    main()
