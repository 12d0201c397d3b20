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
    """Averages a model's parameters; what is new to it begins at its value.

    The average is in the parameters' precision, but at least in float32: less could not tell a step's part of it. It
    has no buffers: those of the last iterate do as well, because BatchNorm's are averages of their own.

    Args:
        options: how soon the past is forgotten.
        model: the model that is trained.
        parameters: those of its parameters that are averaged.

    """

    def __init__(self, options: IterateAverage, model: nn.Module, parameters: Collection[Tensor]) -> None:
        self.count = 0
        """Iterates that are in the average."""
        self._is_held = False
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
        for name, parameter in self._parameters.items():
            iterate = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
            if name in self._averages:
                average = self._averages[name] = self._averages[name].to(iterate)  # the model may have moved
                averages.append(average)
                iterates.append(iterate)
            else:
                self._averages[name] = iterate.detach().clone()
        if averages:
            torch._foreach_lerp_(averages, iterates, self.weight(batches))
        self.count += batches

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the model have the averaged values for a while; inside another such block nothing changes."""
        averages = {name: average for name, average in self._averages.items() if name in self._parameters}
        if self._is_held or not averages:
            yield
            return
        kept = {name: self._parameters[name].detach().clone() for name in averages}
        self._is_held = True
        try:
            self._put(averages)
            yield
        finally:
            self._put(kept)
            self._is_held = False

    def check_trainable(self) -> None:
        """Check that the model has its own values.

        Raises:
            RuntimeError: it has the averaged ones; the text says what to do.

        """
        if self._is_held:
            raise RuntimeError(
                "inside `with optimizer.averaged():` the model has the average of its iterates, which is no place to "
                "train from: evaluate or save it there, and train after the block"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return "count", and the averaged "parameters" by name."""
        return {"count": self.count, "parameters": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; an empty one lets the average begin at the next iterate.

        Raises:
            ValueError: it belongs to another model; the text names the parameter.

        """
        shapes = {name: tuple(parameter.shape) for name, parameter in self._model.named_parameters()}
        averages: Mapping[str, Tensor] = state.get("parameters", {}) if self._is_on else {}
        for name, average in averages.items():
            if shapes.get(name) != tuple(average.shape):
                raise ValueError(
                    f"the state has an average of {name!r} of shape {tuple(average.shape)}, and the model "
                    + (f"has one of {shapes[name]}" if name in shapes else "has no such parameter")
                )
        self.count = state.get("count", 0) if self._is_on else 0
        self._averages = {name: average.clone() for name, average in averages.items()}

    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            # Past autograd: the values come back, so that the graph of an earlier forward stays valid.
            self._parameters[name].data.copy_(value)
