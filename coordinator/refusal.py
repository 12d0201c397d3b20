"""Why the coordinator refuses something, in words and as a status."""

from enum import Enum, auto


class Status(Enum):
    """The gRPC status codes that devices meet, by their gRPC names."""

    OK = auto()
    NOT_FOUND = auto()
    ALREADY_EXISTS = auto()
    FAILED_PRECONDITION = auto()
    INVALID_ARGUMENT = auto()
    PERMISSION_DENIED = auto()
    RESOURCE_EXHAUSTED = auto()
    DEADLINE_EXCEEDED = auto()
    ABORTED = auto()
    UNAVAILABLE = auto()


class RefusedError(Exception):
    """A request that the coordinator refuses; the session goes on for the others."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def invalid(device: str, step: int, reason: str) -> RefusedError:
    """Return the refusal of what a device sent in a step."""
    return RefusedError(Status.INVALID_ARGUMENT, f"device {device!r}, step {step}: {reason}")
