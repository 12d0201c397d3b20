"""Bytes and accuracy of each mode, so that one can choose: the same short training in all of them."""

import statistics
from dataclasses import dataclass

import torch

from benchmarks.privacy.fleet import batch_of, digits, make, watched_training
from benchmarks.privacy.modes import Mode
from edge_client.tasks import Partition
from edge_client.tasks.data import in_memory

BATCH = 32
STEPS = 30
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Choice:
    """What a mode costs."""

    bytes: int
    """Of all devices in the session, in both directions."""
    accuracy: float
    """On held-out images, in the median over the seeds of the weights."""


def choice(mode: Mode, network: str, steps: int = STEPS, seeds: tuple[int, ...] = SEEDS) -> Choice:
    """Let the devices train in a mode, and return what it costs."""
    held_out = in_memory(digits(), digits().test_data(Partition()))
    sizes, accuracies = [], []
    for seed in seeds:

        def network_of(seed: int = seed) -> torch.nn.Module:
            return make(network, seed)

        run = watched_training(mode, network_of, lambda d, n: batch_of(d, n, BATCH), BATCH, steps)
        with torch.no_grad():
            right = run.averaged.eval()(held_out.inputs).argmax(1) == held_out.targets
        sizes.append(run.bytes)
        accuracies.append(float(right.float().mean()))
    return Choice(round(statistics.median(sizes)), statistics.median(accuracies))
