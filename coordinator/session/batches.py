"""How many batches a device trained between two exchanges: as many as all others."""

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.limits import largest

from coordinator.session.refusal import invalid

MAX_BATCHES = int(largest(pb.Contribution, "batches"))
"""Most batches between two exchanges."""


def check_batches(device: str, step: int, batches: int) -> None:
    """Check that a number of batches is possible.

    Raises:
        RefusedError: it is not.

    """
    if not 1 <= batches <= MAX_BATCHES:
        raise invalid(device, step, f"claims {batches} batches in one step; 1 to {MAX_BATCHES} are possible")


def batches_difference(ours: int, theirs: int, who: str) -> str:
    """Return how a device's batches differ from those of others, who are named; nothing if they do not."""
    if ours == theirs:
        return ""
    return (
        f"it trained {ours} batches since the last step, and {who} {theirs}; all devices must exchange after the same "
        "number of batches"
    )
