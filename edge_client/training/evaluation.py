"""How good a model is on samples that it was not trained on."""

import math

import torch
from edgenewton.common.evaluation import Evaluation
from torch import nn

from edge_client.devices import device_of, to_device
from edge_client.tasks import Data, Task
from edge_client.tasks.data import batches_of

BATCH = 256
"""Samples that the model is tried on at once."""


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, data: Data) -> Evaluation:
    """Try a model on samples, some at a time; it is left in the mode, training or not, in which it came.

    Without samples the loss is NaN.

    Raises:
        DataError: the data cannot be loaded.

    """
    was_training, device = model.training, device_of(model)
    model.eval()
    correct = samples = predictions = 0
    loss = 0.0
    try:
        for batch in batches_of(task, data, BATCH, what="held-out data"):
            outputs, targets = model(to_device(batch.inputs, device)), to_device(batch.targets, device)
            loss += task.loss(outputs, targets).item() * len(batch)
            correct += task.correct(outputs, targets)
            samples += len(batch)
            predictions += batch.predictions
    finally:
        model.train(was_training)
    return Evaluation(correct, predictions, loss / samples if samples else math.nan)
