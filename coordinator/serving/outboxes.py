"""What is on its way to the devices of a session: frames for all of them, kept once, and frames for one alone."""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgenewton.common.identity import Identity

from coordinator.serving.broadcast import BroadcastLog
from coordinator.session.refusal import Status
from coordinator.telemetry.link_use import LinkUse


@dataclass(eq=False)
class Outbox:
    """What is on its way to one device, from the time it joins until it leaves or joins again."""

    device: str
    identity: Identity | None = None
    """Whose certificate the device joined with; None in plaintext."""
    position: int | None = None
    """Where it is in what goes to all; None for a device that needs a snapshot first."""
    direct: deque[bytes] = field(default_factory=deque)
    end: tuple[Status, str] | None = None
    """How its stream ends, once it does."""
    is_attached: bool = False
    """Whether there is a stream that reads it."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    use: LinkUse = field(default_factory=LinkUse)

    def close(self, status: Status, reason: str) -> None:
        """End the stream."""
        self.end = (status, reason)
        self.wake.set()


class Outboxes:
    """The outboxes of a session's members, and the log of what goes to all of them.

    Args:
        log: keeps what goes to all.

    """

    def __init__(self, log: BroadcastLog) -> None:
        self.log = log
        self._of: dict[str, Outbox] = {}

    def __iter__(self) -> Iterator[Outbox]:
        """Go through all outboxes; those that come and go meanwhile change nothing."""
        return iter(list(self._of.values()))

    def open(self, device: str, identity: Identity | None) -> Outbox:
        """Give a device an outbox; the stream that read the one before ends, and its bytes count on."""
        outbox = Outbox(device, identity)
        before = self._of.get(device)
        if before is not None:
            outbox.use = before.use
            before.close(Status.ABORTED, f"device {device!r} has joined again")
        self._of[device] = outbox
        return outbox

    def __getitem__(self, device: str) -> Outbox:
        """Return a member's outbox."""
        return self._of[device]

    def get(self, device: str) -> Outbox | None:
        """Return a device's outbox, or None if it has none."""
        return self._of.get(device)

    def has(self, outbox: Outbox) -> bool:
        """Whether an outbox is still its device's."""
        return self._of.get(outbox.device) is outbox

    def close(self, device: str, status: Status, reason: str) -> None:
        """Take a device's outbox away, and end the stream that reads it."""
        outbox = self._of.pop(device, None)
        if outbox is not None:
            outbox.close(status, reason)

    def place(self, device: str, step: int) -> None:
        """Let a device read what goes to all from a step on, if all of that is still there."""
        outbox = self._of.get(device)
        if outbox is not None:
            outbox.position = self.log.position_of(step)
            outbox.wake.set()

    def hold(self, device: str) -> None:
        """Send a device nothing of what goes to all, until it is placed again."""
        outbox = self._of.get(device)
        if outbox is not None:
            outbox.position = None

    def send(self, device: str, frame: bytes) -> None:
        """Send a frame to one device."""
        outbox = self._of.get(device)
        if outbox is not None:
            outbox.direct.append(frame)
            outbox.wake.set()

    def broadcast(self, frame: bytes, saved: int = 0) -> None:
        """Send a frame of the step that is on to all devices; the codec saved so many bytes in it."""
        self.log.append(frame, saved)
        for outbox in self._of.values():
            outbox.wake.set()

    def waiting(self, outbox: Outbox) -> Iterator[bytes]:
        """Yield what can be sent to a device now.

        Raises:
            LookupError: it reads so slowly that what it needs is gone.

        """
        while outbox.direct:
            yield self._take(outbox, outbox.direct.popleft())
        while outbox.position is not None and outbox.end is None:
            frame = self.log.read(outbox.position)
            if frame is None:
                return
            outbox.position += 1
            outbox.use.saved += frame.saved
            yield self._take(outbox, frame.data)

    @staticmethod
    def _take(outbox: Outbox, frame: bytes) -> bytes:
        outbox.use.sent += len(frame)
        return frame
