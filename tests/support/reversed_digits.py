"""A device that means harm: it trains on the digits as the others do, with a loss that is turned around."""

from torch import Tensor

from edge_client.tasks.digits import DigitsTask


class ReversedDigits(DigitsTask):
    """Its gradients are those of the digits times -10, and its curvature is a hundred times as large."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss that it makes larger."""
        return -10 * super().loss(outputs, targets)
