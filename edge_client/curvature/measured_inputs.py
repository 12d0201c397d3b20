"""Synthetic inputs that follow the moments of all devices' inputs, which each device measures of its own first."""

from collections.abc import Mapping

import torch
from edgenewton.common.options import OptionError
from torch import Tensor

from edge_client.curvature.probe_inputs import GaussianInputs, TokenInputs


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
            moments = GaussianInputs.measure(samples)
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
        self.averaged = {name: moment.clone() for name, moment in averaged.items()}
        if "frequencies" in averaged:
            self._inputs = TokenInputs.of_moments(self.averaged, self._shape)
        else:
            self._inputs = GaussianInputs.of_moments(self.averaged)

    def __call__(self, generator: torch.Generator, n: int) -> Tensor:
        """Return `n` inputs, `[n, *input_shape]`.

        Raises:
            RuntimeError: the moments are not settled.

        """
        if self._inputs is None:
            raise RuntimeError("the moments of the devices' inputs are not known yet")
        return self._inputs(generator, n)
