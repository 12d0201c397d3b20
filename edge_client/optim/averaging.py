"""The average of a training's iterates, which is better than the last of them once the gradients' noise rules.

Ruppert (1988), and Polyak and Juditsky (1992, https://doi.org/10.1137/0330046), average the iterates of a noisy
descent. A mean of them all is slow to forget the first ones, and an exponential one lags in the first batches, so the
n-th iterate, from 0, has the weight 9 / (10 + n), as in polynomial-decay averaging (Shamir and Zhang 2013,
https://arxiv.org/abs/1212.1824, section 4), until that is less than an exponential average's.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edge_client.optim.options import IterateAverage


class RunningAverage:
    """Averages a model's parameters, and the buffers that are not whole numbers, such as BatchNorm's running means.

    What is new to it begins at its value. The average is in the parameters' precision, but at least in float32: less
    could not tell a step's part of it.

    Args:
        options: how soon the past is forgotten.
        model: the model that is trained.
        parameters: those of its parameters that are averaged.

    """

    def __init__(self, options: IterateAverage, model: nn.Module, parameters: Collection[Tensor]) -> None:
        self.count = 0
        """Iterates that are in the average."""
        self.is_held = False
        """Whether the model has the averaged values now."""
        self._floor = 1 - options.decay
        self._is_on = options.decay > 0
        self._model = model
        self._averages: dict[str, Tensor] = {}
        self.extend(parameters)

    def extend(self, parameters: Collection[Tensor]) -> None:
        """Average those of the model's parameters that are given and require gradients, and what was before."""
        known = set(parameters)
        self._parameters = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if parameter in known and (parameter.requires_grad or name in self._averages)
        }
        # A buffer is looked up each time: `model.to` replaces it.
        self._buffers = {
            f"{prefix}.{name}".lstrip("."): (module, name)
            for prefix, module in self._model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.is_floating_point()
        }

    def weight(self, batches: int = 1) -> float:
        """Return the weight of the next iterate, after so many batches: that of as many iterates together."""
        kept = (1 - max(self._floor, 9 / (10 + n)) for n in range(self.count, self.count + batches))
        return 1 - math.prod(kept)

    @torch.no_grad()
    def take(self, batches: int = 1) -> None:
        """Take the model as it is into the average, after so many batches."""
        if not self._is_on:
            return
        averages, iterates = [], []
        for name, tensor in (self._parameters | self._present_buffers()).items():
            iterate = _precise(tensor)
            if name in self._averages:
                average = self._averages[name] = self._averages[name].to(iterate)  # the model may have moved
                averages.append(average)
                iterates.append(iterate)
            else:
                self._averages[name] = iterate.detach().clone()
        if averages:
            torch._foreach_lerp_(averages, iterates, self.weight(batches))
        self.count += batches

    @torch.no_grad()
    def take_buffers(self) -> None:
        """Take the model's buffers in place of their averages: all devices have them in common now."""
        for name, buffer in self._present_buffers().items():
            if name in self._averages:
                self._averages[name].copy_(buffer)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the model have the averaged values for a while; inside another such block nothing changes."""
        tensors = self._parameters | self._present_buffers()
        names = [name for name in tensors if name in self._averages]
        if self.is_held or not names:
            yield
            return
        kept = [tensors[name].detach().clone() for name in names]
        self.is_held = True
        try:
            self._put(names, [self._averages[name] for name in names])
            yield
        finally:
            self._put(names, kept)
            self.is_held = False

    def state_dict(self) -> dict[str, Any]:
        """Return "count", and the averaged "tensors" by name."""
        return {"count": self.count, "tensors": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; an empty one lets the average begin at the next iterate.

        Raises:
            ValueError: it belongs to another model; the text names the tensor.

        """
        tensors = dict(self._model.named_parameters()) | self._present_buffers()
        averages: Mapping[str, Tensor] = state.get("tensors", {}) if self._is_on else {}
        for name, average in averages.items():
            shape = tuple(tensors[name].shape) if name in tensors else None
            if shape != tuple(average.shape):
                raise ValueError(
                    f"the state has an average of {name!r} of shape {tuple(average.shape)}, and the model "
                    + (f"has one of {shape}" if shape is not None else "has no such tensor")
                )
        self.count = state.get("count", 0) if self._is_on else 0
        self._averages = {name: average.clone() for name, average in averages.items()}
        self.extend(self._parameters.values())

    def _present_buffers(self) -> dict[str, Tensor]:
        return {
            name: buffer
            for name, (module, key) in self._buffers.items()
            if (buffer := module._buffers.get(key)) is not None
        }

    def _put(self, names: list[str], values: list[Tensor]) -> None:
        # Past autograd: the values come back, so that the graph of an earlier forward stays valid.
        tensors = self._parameters | self._present_buffers()
        for name, value in zip(names, values, strict=True):
            tensors[name].data.copy_(value)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
