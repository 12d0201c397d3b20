"""The slices that a device has sent in a step, and what becomes of those that did not arrive in time."""

from typing import NamedTuple

from edgenewton.v1.codecs import Data, Float32Array
from edgenewton.v1.framing import Slice, SliceWriter

_KEPT = "delta"
"""What is sent later if it comes too late: the work of several steps. A gradient that is late is of the past."""


class _Sent(NamedTuple):
    piece: Slice
    is_skipped: bool = False
    """Whether it weighs nothing."""
    values: Float32Array | None = None
    """Of one that came too late to leave."""


class SentSlices:
    """Those of one step, in order.

    Args:
        writer: writes them, and remembers what is still to be sent.

    """

    def __init__(self, writer: SliceWriter) -> None:
        self._writer = writer
        self._step: int | None = None
        self._sent: list[_Sent] = []

    def encode(self, piece: Slice, values: Float32Array, step: int, *, is_skipped: bool) -> Data:
        """Return the bytes of a slice that is sent now."""
        self._step = step
        self._sent.append(_Sent(piece, is_skipped=is_skipped))
        # What weighs nothing must not take along what the stages remember: it would be lost.
        return self._writer.encode_anew(piece, values, step) if is_skipped else self._writer.encode(piece, values, step)

    def keep(self, piece: Slice, values: Float32Array, step: int) -> None:
        """Take note of a slice that comes too late."""
        self._step = step
        self._sent.append(_Sent(piece, values=values.copy() if piece.spec.kind == _KEPT else values[:0]))

    def settle(self, step: int, counted: int | None) -> None:
        """Let what was not in time in a step be sent with the next ones, once it is known what was.

        Args:
            step: that has committed.
            counted: so many of the device's slices, the first ones, are in its means; None for all of them. Those may
                be ones that the device sent before it was restarted from an older state.

        """
        if step != self._step:
            return
        for sent in self._sent[counted:] if counted is not None else ():
            if sent.piece.spec.kind != _KEPT or sent.is_skipped:
                continue
            if sent.values is not None:
                self._writer.keep(sent.piece, sent.values, step)
            else:
                self._writer.take_back(sent.piece)
        self._step, self._sent = None, []
