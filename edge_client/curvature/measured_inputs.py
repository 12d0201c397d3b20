"""Synthetic inputs that follow the moments of all devices' inputs, which each device measures of its own first."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from edgenewton.common.options import OptionError
from torch import Tensor

from edge_client.curvature.probe_inputs import GaussianInputs, TokenInputs

_CELLS = 8
"""Rows and columns that the moments of an image's channel are told in: a probe needs no finer ones."""


class MeasuredInputs:
    """Normal features for inputs that are numbers, tokens by their frequency for integers; drawn once it is settled.

    Args:
        samples: this device's inputs, `[n, *input_shape]`.
        tokens: for integers, how many there are.

    Raises:
        OptionError: `tokens` is missing.

    """

    def __init__(self, samples: Tensor, tokens: int | None = None) -> None:
        self._shape = tuple(samples.shape[1:])
        if samples.is_floating_point():
            moments = {name: _coarse(moment) for name, moment in GaussianInputs.measure(samples).items()}
        elif tokens is None:
            raise OptionError("tokens", tokens, "integer inputs need the number of tokens that there are")
        else:
            moments = TokenInputs.measure(samples, tokens)
        self.moments: Mapping[str, Tensor] = {name: moment.float() for name, moment in moments.items()}
        """Of this device's inputs, by name."""
        self.averaged: Mapping[str, Tensor] = {}
        """Of all devices' inputs, once they are known."""
        self._inputs: GaussianInputs | TokenInputs | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the moments of all devices' inputs are known."""
        return self._inputs is not None

    def settle(self, averaged: Mapping[str, Tensor]) -> None:
        """Take the moments of all devices' inputs."""
        # On the CPU, whose generators draw the inputs, wherever a state was loaded to.
        self.averaged = {name: moment.cpu().clone() for name, moment in averaged.items()}
        if "frequencies" in averaged:
            self._inputs = TokenInputs.of_moments(self.averaged, self._shape)
        else:
            fine = {name: _fine(moment, self._shape) for name, moment in self.averaged.items()}
            self._inputs = GaussianInputs.of_moments(fine)

    def __call__(self, generator: torch.Generator, n: int) -> Tensor:
        """Return `n` inputs, `[n, *input_shape]`.

        Raises:
            RuntimeError: the moments are not settled.

        """
        if self._inputs is None:
            raise RuntimeError("the moments of the devices' inputs are not known yet")
        return self._inputs(generator, n)


def _coarse(moment: Tensor) -> Tensor:
    """Return what is told of the moments of an input: their means over cells of what has rows and columns."""
    if moment.dim() < 3:
        return moment
    cells = min(moment.shape[-2], _CELLS), min(moment.shape[-1], _CELLS)
    return F.adaptive_avg_pool2d(moment.reshape(1, -1, *moment.shape[-2:]), cells).view(*moment.shape[:-2], *cells)


def _fine(moment: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo `_coarse` as far as that goes: every element is told to be as its cell is."""
    if moment.shape == shape:
        return moment
    flat = moment.reshape(1, -1, *moment.shape[-2:])
    return F.interpolate(flat, size=shape[-2:], mode="nearest").view(shape)
