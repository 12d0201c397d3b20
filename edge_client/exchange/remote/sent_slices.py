"""The slices that a device has sent in a step, and what becomes of those that did not arrive in time."""

from edgenewton.v1.codecs import Data, Float32Array
from edgenewton.v1.framing import Slice, SliceWriter

_KEPT = "delta"
"""What is sent later if it comes too late: the work of several steps. A gradient that is late is of the past."""


class SentSlices:
    """Those of one step, in order.

    Args:
        writer: writes them, and remembers what is still to be sent.

    """

    def __init__(self, writer: SliceWriter) -> None:
        self._writer = writer
        self._step: int | None = None
        self._sent: list[Slice | None] = []
        """None stands for one that weighs nothing."""

    def encode(self, piece: Slice, values: Float32Array, step: int, *, is_skipped: bool) -> Data:
        """Return the bytes of a slice that is sent now."""
        self._step = step
        self._sent.append(None if is_skipped else piece)
        # What weighs nothing must not take along what the stages remember: it would be lost.
        return self._writer.encode_anew(piece, values, step) if is_skipped else self._writer.encode(piece, values, step)

    def keep(self, piece: Slice, values: Float32Array, step: int) -> None:
        """Let a slice that comes too late be sent with the next one."""
        if piece.spec.kind == _KEPT:
            self._writer.keep(piece, values, step)

    def take_back(self, step: int, counted: int) -> None:
        """Let all but the first `counted` slices of a step be sent again with the next ones: they were not in time."""
        if step != self._step:
            return
        for piece in self._sent[counted:]:
            if piece is not None and piece.spec.kind == _KEPT:
                self._writer.take_back(piece)
        self._sent = self._sent[:counted]
