"""How many rounds FedAvg takes on the fleet's task, by its local steps and rate: what the fleet gives it.

On the fleet nearly all of a round is what Flower does around it, so that the fewest rounds are the least time. The same
samples, batches and initial weights as in benchmarks/fleet/fedavg_app, in this process.
"""

import itertools
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.fleet.fedavg_app.fedavg import ALPHA, BATCH_SIZE, take_local_steps
from benchmarks.fleet.goal import DEVICES, TARGET
from benchmarks.shared.results import markdown_table
from edge_client.tasks import Partition, load_task
from edge_client.tasks.data import in_memory
from edge_client.training.batches import BatchOrder
from edge_client.training.evaluation import evaluate
from edge_client.training.trainer import build_model, device_seed

LOCAL_STEPS = (20, 50, 100, 200)
RATES = (0.02, 0.05, 0.1, 0.2)
BUDGET = 1500
"""Batches of each device."""


def rounds_to_target(local_steps: int, lr: float, seed: int) -> float:
    """Return the rounds that FedAvg takes; infinite if the budget is too small."""
    torch.set_num_threads(1)
    task = load_task("digits")
    held_out = task.test_data(Partition(0, 1, "iid", ALPHA, seed))
    partitions = [Partition(index, DEVICES, "dirichlet", ALPHA, seed) for index in range(DEVICES)]
    data = [in_memory(task, task.train_data(partition)) for partition in partitions]
    orders = [BatchOrder(len(samples), BATCH_SIZE, device_seed(seed, i)) for i, samples in enumerate(data)]
    weights = build_model(task, seed).state_dict()
    for number in range(1, BUDGET // local_steps + 1):
        states = []
        for samples, order in zip(data, orders, strict=True):
            model = build_model(task, seed, weights)
            take_local_steps(model, task, samples, order, number, local_steps, lr)
            states.append(model.state_dict())
        weights = {name: torch.stack([state[name] for state in states]).mean(0) for name in weights}
        result = evaluate(build_model(task, seed, weights), task, held_out)
        if result.correct >= TARGET * result.samples:
            return number
    return float("inf")


def main(seeds: Annotated[int, typer.Option(min=1)] = 3) -> None:
    """Try every combination with every seed; print the medians."""
    tried = list(itertools.product(LOCAL_STEPS, RATES, range(seeds)))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        found = dict(zip(tried, pool.map(rounds_to_target, *zip(*tried, strict=True)), strict=True))
    rows = [
        [steps, *(f"{statistics.median(found[steps, lr, seed] for seed in range(seeds)):g}" for lr in RATES)]
        for steps in LOCAL_STEPS
    ]
    Console().print(markdown_table(["local steps", *(f"rate {lr:g}" for lr in RATES)], rows))


if __name__ == "__main__":
    typer.run(main)
