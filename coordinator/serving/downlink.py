"""How a session's means get to its devices.

A room hands its downlink each slice that the session has released, and each step that it has committed, in order; the
downlink turns them into frames that go to all devices. `Broadcast` does so at once.

A relay, whose devices are together one device of a session above, would be another downlink. It joins there when
`begin` tells it the tensors, through an exchange that it is given, and sends the slices upward as a device sends its
gradients; the contribution above is complete when the step is committed below. Each frame upward claims the samples of
the whole step, which `StepCommitted` is the first to know, so the slices are kept until then unless `SliceReady` comes
to carry them. What comes down from above it broadcasts: the slices as they come, then the commit, and only then the log
begins the next step. Its devices wait for that as they wait for each other, since none begins a step before the commit
of the last. A step that is lost above is a `restart`, and its devices heal.
"""

from typing import Protocol

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.framing import FramePacker, Layout, SliceWriter, check_values

from coordinator.serving.outboxes import Outboxes
from coordinator.session.decisions import SliceReady, StepCommitted
from coordinator.telemetry.announcement import commit_to_proto
from coordinator.telemetry.link_use import saved_bytes


class Downlink(Protocol):
    """Brings what a session decides to all its devices."""

    def begin(self, layout: Layout) -> None:
        """Learn how the session's tensors are written, before the first of them comes."""

    def add(self, ready: SliceReady) -> None:
        """Take a slice of the step that is on."""

    def commit(self, committed: StepCommitted) -> None:
        """Take the end of the step that is on; it is recorded already, and whatever is added next is of the next."""

    def flush(self) -> None:
        """Nothing more is ready now: let nothing wait that could go."""

    def restart(self, step: int) -> None:
        """Forget the step that is on: the session stands before one that does not follow from it."""


class Broadcast:
    """Writes means once for all devices; slices that are ready together leave in common frames.

    Args:
        outboxes: of the devices.

    """

    def __init__(self, outboxes: Outboxes) -> None:
        self._outboxes = outboxes
        self._layout: Layout | None = None
        self._writer: SliceWriter | None = None
        self._packer: FramePacker | None = None
        self._saved = 0

    def begin(self, layout: Layout) -> None:
        """Learn how slices are written, and how large a frame becomes."""
        self._layout, self._writer = layout, SliceWriter(layout)

    def add(self, ready: SliceReady) -> None:
        """Encode a slice; send the frame that it fills.

        Raises:
            ValueError: the mean is not finite or too large.

        """
        assert self._layout is not None
        assert self._writer is not None
        packer = self._packing(ready.step)
        piece = self._layout.slice_of(ready.key)
        check_values(piece.spec, ready.values)
        self._writer.write_as(ready.form)
        data = self._writer.encode(piece, ready.values, ready.step)
        self._saved += saved_bytes(piece, data)
        for frame in packer.add(piece, data):
            self._send(frame)

    def commit(self, committed: StepCommitted) -> None:
        """Send the commit, with the slices that wait, and begin the next step."""
        self._send(self._packing(committed.step).take(pb.Frame(commit=commit_to_proto(committed))))
        self._packer = None
        self._outboxes.log.begin_step(committed.last_batch + 1)

    def flush(self) -> None:
        """Send the slices that wait."""
        packer, self._packer = self._packer, None
        if packer is not None and not packer.is_empty:
            self._send(packer.take())

    def restart(self, step: int) -> None:
        """Drop the slices that wait, and what was sent before."""
        self._packer = None
        self._outboxes.log.restart(step)

    def _packing(self, step: int) -> FramePacker:
        if self._packer is None:
            assert self._layout is not None
            self._packer = FramePacker(step, 0, self._layout.frame_bytes)
        return self._packer

    def _send(self, frame: bytes) -> None:
        self._outboxes.broadcast(frame, self._saved)
        self._saved = 0
