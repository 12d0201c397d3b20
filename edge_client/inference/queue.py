"""The queue of requests that wait for the model: which of them make up the next batch."""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from edge_client.inference.errors import OverloadedError


@dataclass(eq=False)
class Waiting:
    """A request in the queue."""

    samples: int
    deadline_s: float
    """Point in time, on the clock of who calls the queue."""
    raw: NDArray[Any] | None = field(default=None, repr=False)
    """Decoded samples `[samples, *raw_shape]`; None while they are being decoded."""


RequestT = TypeVar("RequestT", bound=Waiting)


@dataclass(frozen=True)
class Taken(Generic[RequestT]):
    """What was taken out of the queue."""

    batch: list[RequestT]
    expired: list[RequestT]
    """Their deadline was over before their turn."""


class BatchQueue(Generic[RequestT]):
    """First come, first served, in batches; with a limit on how many samples wait.

    Plain Python without a clock or threads: it is told the time.

    Args:
        max_batch: samples in a batch at most.
        max_waiting: samples that wait at most; a request beyond it is refused at once.

    """

    def __init__(self, max_batch: int, max_waiting: int) -> None:
        self.max_batch = max_batch
        self.max_waiting = max_waiting
        self._waiting: dict[RequestT, None] = {}  # in the order of arrival
        self._samples = 0

    def __len__(self) -> int:
        """Return how many samples wait."""
        return self._samples

    @property
    def requests(self) -> int:
        """How many requests wait, those that are being decoded among them."""
        return len(self._waiting)

    def add(self, request: RequestT) -> None:
        """Take a request in.

        Raises:
            OverloadedError: too many samples wait.

        """
        if self._samples + request.samples > self.max_waiting:
            raise OverloadedError(f"overloaded: {self._samples} samples wait, {self.max_waiting} may; try again later")
        self._waiting[request] = None
        self._samples += request.samples

    def discard(self, request: RequestT) -> None:
        """Forget a request, because it was cancelled; nothing happens if it is not in the queue."""
        if request in self._waiting:
            del self._waiting[request]
            self._samples -= request.samples

    def take(self, now_s: float) -> Taken[RequestT]:
        """Take the next batch out, and every request that is too late.

        Requests whose samples are still being decoded keep their place, and hold nobody up.
        """
        expired = [request for request in self._waiting if request.deadline_s <= now_s]
        for request in expired:
            self.discard(request)
        batch: list[RequestT] = []
        size = 0
        for request in self._waiting:
            if request.raw is None:
                continue
            if batch and size + request.samples > self.max_batch:
                break
            batch.append(request)
            size += request.samples
        for request in batch:
            self.discard(request)
        return Taken(batch, expired)

    def clear(self) -> list[RequestT]:
        """Take everything out."""
        rest = list(self._waiting)
        self._waiting.clear()
        self._samples = 0
        return rest
