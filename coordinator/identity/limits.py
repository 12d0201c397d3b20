"""How much one identity may ask of the coordinator. Plain Python: it is told the time."""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Annotated

from edgenewton.v1 import MAX_MESSAGE_BYTES
from pydantic import BaseModel, ConfigDict, Field

from coordinator.session.refusal import RefusedError, Status

MAX_KNOWN = 10_000
"""So many identities' buckets are kept; those that were quiet for longest begin anew."""


class IdentityLimits(BaseModel):
    """What one identity may ask."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10_000.0
    """Calls, frames and parts of snapshots in a second, over a longer time."""
    burst_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """Seconds' worth of messages that may come at once."""
    streams: Annotated[int, Field(ge=1)] = 16
    """Calls that may be under way at once: streams, and requests that have not come or are not answered."""
    readers: Annotated[int, Field(ge=1)] = 64
    """Streams that only send, such as those that watch, that may be open at once from one address, in plaintext too."""
    request_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 20.0
    """Seconds in which the request of a call must have come."""
    reader_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    """Seconds in which a message of a stream that only sends must have been taken."""
    message_bytes: Annotated[int, Field(ge=1_024, le=MAX_MESSAGE_BYTES)] = MAX_MESSAGE_BYTES
    """Largest message; gRPC itself refuses larger ones, in plaintext too."""
    connections: Annotated[int, Field(ge=1, le=1_000_000)] = 4_096
    """Connections of all identities together, in plaintext too: gRPC doesn't count them by client."""
    handshake_s: Annotated[float, Field(gt=0, le=3_600)] = 10.0
    """Seconds in which a connection must have come to an understanding, with TLS and HTTP/2."""
    idle_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """Seconds after which a connection without calls ends; whoever needs it again opens another."""


@dataclass
class TokenBucket:
    """Lets `rate` messages a second through, and `capacity` at once.

    Turner 1986, "New directions in communications (or which way to the information age?)", the leaky bucket as a meter.
    """

    rate: float
    capacity: float
    tokens: float
    at: float
    """When `tokens` was right, in seconds."""

    @classmethod
    def full(cls, rate: float, capacity: float, now: float) -> "TokenBucket":
        """Return a bucket that nobody has used yet; it holds at least one message."""
        capacity = max(1.0, capacity)
        return cls(rate, capacity, capacity, now)

    def take(self, now: float) -> bool:
        """Take one message out; return whether there was one left."""
        self.tokens = min(self.capacity, self.tokens + max(0.0, now - self.at) * self.rate)
        self.at = max(self.at, now)
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class LimitBook:
    """Counts what each identity does, and refuses what is too much.

    Args:
        limits: of each identity.

    """

    def __init__(self, limits: IdentityLimits) -> None:
        self.limits = limits
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._streams: Counter[str] = Counter()

    def take_message(self, name: str, now: float) -> None:
        """Count a message of an identity.

        Raises:
            RefusedError: it sends more than it may.

        """
        bucket = self._buckets.get(name)
        if bucket is None:
            rate = self.limits.messages_per_s
            bucket = self._buckets[name] = TokenBucket.full(rate, rate * self.limits.burst_s, now)
            if len(self._buckets) > MAX_KNOWN:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(name)
        if not bucket.take(now):
            raise RefusedError(
                Status.RESOURCE_EXHAUSTED,
                f"{name!r} sends more than {self.limits.messages_per_s:g} messages in a second "
                "(`edge-coordinator serve --max-messages-per-s`)",
            )

    def open_stream(self, name: str) -> None:
        """Count a stream that an identity opens.

        Raises:
            RefusedError: it has too many open.

        """
        if self._streams[name] >= self.limits.streams:
            raise RefusedError(
                Status.RESOURCE_EXHAUSTED,
                f"{name!r} has {self._streams[name]} streams open already, which is as many as it may "
                "(`edge-coordinator serve --max-streams`)",
            )
        self._streams[name] += 1

    def close_stream(self, name: str) -> None:
        """Count a stream that has ended."""
        self._streams[name] -= 1
        if not self._streams[name]:
            del self._streams[name]
