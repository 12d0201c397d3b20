"""How good a model is on samples that it was not trained on."""

import torch
from edgenewton.common.evaluation import Evaluation
from torch import nn

from edge_client.tasks import Samples, Task


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, samples: Samples) -> Evaluation:
    """Try a model on samples; it is left in the mode, training or not, in which it came."""
    was_training = model.training
    model.eval()
    outputs = model(samples.inputs)
    model.train(was_training)
    loss = task.loss(outputs, samples.targets).item()
    return Evaluation(task.correct(outputs, samples.targets), samples.predictions, loss)
