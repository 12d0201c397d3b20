"""What went over the link to one device."""

from dataclasses import dataclass

from edgenewton.v1.codecs import Data
from edgenewton.v1.framing import Slice


@dataclass
class LinkUse:
    """Bytes that the coordinator has exchanged with a device."""

    received: int = 0
    sent: int = 0
    saved: int = 0
    """Bytes that the codec saved both ways: what the same tensors take in float32, less what they took."""


def saved_bytes(piece: Slice, data: Data) -> int:
    """Return how many bytes a coded slice takes less than in float32; negative for one that takes more."""
    return 4 * piece.length - memoryview(data).nbytes
