"""Why the coordinator refuses something, in words and as a status."""

from collections import Counter, deque
from dataclasses import dataclass
from enum import Enum, auto

MAX_REFUSALS = 100
MAX_TEXT = 500


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
    UNAUTHENTICATED = auto()


class RefusedError(Exception):
    """A request that the coordinator refuses; the session goes on for the others."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class UndecidedError(RefusedError):
    """A request that cannot be answered yet, because it depends on what other devices say; it is worth another try.

    Args:
        reason: what it waits for.
        is_new: whether the device did not say the same before.

    """

    def __init__(self, reason: str, *, is_new: bool) -> None:
        super().__init__(Status.UNAVAILABLE, reason)
        self.is_new = is_new


def invalid(device: str, step: int, reason: str) -> RefusedError:
    """Return the refusal of what a device sent in a step."""
    return RefusedError(Status.INVALID_ARGUMENT, f"device {device!r}, step {step}: {reason}")


@dataclass(frozen=True)
class Refusal:
    """A refused request."""

    time_s: float
    """Seconds since the Unix epoch."""
    session: str
    device: str
    status: Status
    reason: str


class RefusalLog:
    """The latest refused requests of a coordinator, and how many there were in all."""

    def __init__(self) -> None:
        self.counts: Counter[Status] = Counter()
        self.latest: deque[Refusal] = deque(maxlen=MAX_REFUSALS)

    def add(self, error: RefusedError, session: str, device: str, time_s: float) -> None:
        """Note a refusal; whose it was may be unknown, and is what the sender said."""
        self.counts[error.status] += 1
        self.latest.append(
            Refusal(time_s, session[:MAX_TEXT], device[:MAX_TEXT], error.status, error.reason[:MAX_TEXT])
        )
