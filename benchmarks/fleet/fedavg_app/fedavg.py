"""Flower's FedAvg on EdgeNewton's tasks, models, partitions and batches: the baseline on a fleet.

The server tries the averaged model on all held-out samples itself, which costs the devices and their links nothing, and
ends at the target.
"""

import contextlib
import json
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from edge_client.tasks import Partition, Samples, Task, load_task
from edge_client.tasks.data import in_memory
from edge_client.training.batches import BatchOrder
from edge_client.training.evaluation import evaluate
from edge_client.training.trainer import build_model, device_seed

client = ClientApp()
server = ServerApp()

BATCH_SIZE = 32
MOMENTUM = 0.9
ALPHA = 0.3


def take_local_steps(
    model: nn.Module, task: Task, samples: Samples, order: BatchOrder, server_round: int, steps: int, lr: float
) -> None:
    """Take a round's steps of SGD; rounds count from 1."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)
    for step in range((server_round - 1) * steps, server_round * steps):
        batch = torch.from_numpy(order.indices(step))
        optimizer.zero_grad()
        task.loss(model(samples.inputs[batch]), samples.targets[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Take the round's local steps with SGD."""
    torch.set_num_threads(1)
    run, node = context.run_config, context.node_config
    seed, steps, index = int(run["seed"]), int(run["local-steps"]), int(node["partition-id"])
    task = load_task(str(run["task"]))
    partition = Partition(index, int(node["num-partitions"]), "dirichlet", ALPHA, seed)
    samples = in_memory(task, task.train_data(partition))
    order = BatchOrder(len(samples), BATCH_SIZE, device_seed(seed, index))
    model = build_model(task, seed, message.content.array_records["arrays"].to_torch_state_dict())
    server_round = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
    take_local_steps(model, task, samples, order, server_round, steps, float(run["lr"]))
    # All devices take equally many batches, so that they count alike, as in EdgeNewton.
    metrics = MetricRecord({"num-examples": steps * BATCH_SIZE})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


class _TargetReachedError(Exception):
    pass


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run rounds until the target is reached; write when each ended, and its accuracy."""
    run = context.run_config
    task, seed, devices = load_task(str(run["task"])), int(run["seed"]), int(run["devices"])
    held_out = task.test_data(Partition(0, 1, "iid", ALPHA, seed))
    progress: list[dict[str, float]] = []

    def try_model(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        now = time.time()
        result = evaluate(build_model(task, seed, arrays.to_torch_state_dict()), task, held_out)
        accuracy = result.accuracy
        progress.append({"round": server_round, "time_s": now, "accuracy": accuracy})
        if accuracy >= float(run["target"]):
            raise _TargetReachedError
        return MetricRecord({"accuracy": accuracy})

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=devices, min_available_nodes=devices)
    with contextlib.suppress(_TargetReachedError):
        strategy.start(
            grid, ArrayRecord(build_model(task, seed).state_dict()), int(run["rounds"]), evaluate_fn=try_model
        )
    Path(str(run["output"])).write_text(json.dumps(progress))
