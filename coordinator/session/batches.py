"""How many batches a device trained between two exchanges: as many as all others."""

from coordinator.session.refusal import invalid
from coordinator.session.step import Step

MAX_BATCHES = 1_000_000
"""Most batches between two exchanges."""


def check_batches(device: str, batches: int, step: Step) -> None:
    """Compare the batches of a device with those of the first complete device.

    Raises:
        RefusedError: they differ, or are impossible.

    """
    if not 1 <= batches <= MAX_BATCHES:
        raise invalid(device, step.number, f"claims {batches} batches in one step; 1 to {MAX_BATCHES} are possible")
    if step.contributions and batches != step.batches:
        raise invalid(
            device,
            step.number,
            f"it trained {batches} batches since the last step, and the first complete device {step.batches}; all "
            "devices must exchange after the same number of batches",
        )
