"""What a device contributes to the step that is on: each tensor once, as soon as the host has it."""

from torch import Tensor

from edge_client.exchange import Membership, TensorKey
from edge_client.sync.host_copies import HostCopies


class Outbox:
    """What has left in a step, and what is on its way into the host's memory."""

    def __init__(self) -> None:
        self.copies = HostCopies()
        """What is to be contributed as soon as the host has it."""
        self._contributed: set[TensorKey] = set()

    def __contains__(self, key: TensorKey) -> bool:
        return key in self._contributed or key in self.copies

    def has_left(self, key: TensorKey) -> bool:
        """Whether a tensor has been contributed."""
        return key in self._contributed

    def add(self, place: Membership, key: TensorKey, value: Tensor, *, stays: bool) -> None:
        """Contribute a tensor, at once if it stays on this device."""
        if stays:
            place.contribute(key, value)
            self._contributed.add(key)
        else:
            self.copies.begin(key, value)
            self.flush(place)

    def flush(self, place: Membership, *, waits: bool = False) -> None:
        """Contribute what the host has by now, or all."""
        for key, value in self.copies.arrived(waits=waits):
            place.contribute(key, value)
            self._contributed.add(key)

    def begin_step(self) -> None:
        """Forget what has left: it was of the step before."""
        self._contributed = set()
