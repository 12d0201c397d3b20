"""The average of a baseline's iterates, as ours has it: baselines are tried with and without."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from edge_client import IterateAverage as Ours
from edge_client.tasks import Task
from edge_client.training.trainer import build_model

_LEAST_WEIGHT = 1 - Ours().decay


def weight_of(number: int) -> float:
    """Return the weight of the iterate of this number, from 0: large at first, so that the average does not lag."""
    return max(_LEAST_WEIGHT, 9 / (10 + number)) if number else 1.0


class IterateAverage:
    """Follows the weights and buffers of a model.

    Args:
        task: makes the model that holds the average.
        device: where it is.

    """

    def __init__(self, task: Task, device: torch.device) -> None:
        own = build_model(task, seed=0).to(device)
        self._averaged = AveragedModel(own, multi_avg_fn=_move_average, use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """A model with the averaged weights and buffers."""
        module: nn.Module = self._averaged.module
        return module

    def follow(self, model: nn.Module) -> None:
        """Take the weights in that a step has left."""
        self._averaged.update_parameters(model)


@torch.no_grad()
def _move_average(averages: Sequence[Tensor], values: Sequence[Tensor], number: Tensor | int) -> None:
    if averages[0].is_floating_point():
        torch._foreach_lerp_(list(averages), list(values), weight_of(int(number)))
    else:
        torch._foreach_copy_(list(averages), list(values))
