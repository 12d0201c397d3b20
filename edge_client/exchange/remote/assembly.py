"""Puts the slices that come down the stream together to steps, in the order in which they commit."""

from dataclasses import dataclass, field

import numpy as np
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import Float32Array
from edgenewton.v1.framing import Layout, parse_frame


@dataclass
class AssembledStep:
    """The means of one step: all of them once `commit` is there."""

    step: int
    tensors: dict[int, Float32Array] = field(default_factory=dict)
    """Flat values, by number in the fingerprint."""
    commit: pb.Commit | None = None


class Assembly:
    """The steps that this device has received and not yet applied."""

    def __init__(self, layout: Layout, next_step: int) -> None:
        self.layout = layout
        self.received_until = next_step
        """The first step whose commit has not come."""
        self._steps: dict[int, AssembledStep] = {}

    @property
    def waiting(self) -> int:
        """How many committed steps wait to be applied."""
        return sum(step.commit is not None for step in self._steps.values())

    def take_frame(self, data: bytes) -> pb.Frame:
        """Take a frame in, and return what is in it besides slices.

        Raises:
            ValueError: it breaks the contract; the text names the tensor.

        """
        frame, slices = parse_frame(data, self.layout)
        if frame.step < self.received_until or not (slices or frame.HasField("commit")):
            return frame
        step = self._steps.setdefault(frame.step, AssembledStep(frame.step))
        for piece, payload in slices:
            values = piece.decode(payload, frame.step)
            if piece.length == piece.spec.size:
                step.tensors[piece.key.tensor] = values
                continue
            target = step.tensors.get(piece.key.tensor)
            if target is None:
                target = step.tensors[piece.key.tensor] = np.empty(piece.spec.size, dtype=np.float32)
            target[piece.key.offset : piece.key.offset + piece.length] = values
        if frame.HasField("commit"):
            step.commit = frame.commit
            self.received_until = frame.step + (frame.commit.batches or 1)
        return frame

    def has_committed(self, number: int) -> bool:
        """Whether a step has committed that was not taken yet."""
        step = self._steps.get(number)
        return step is not None and step.commit is not None

    def take_step(self, number: int) -> AssembledStep | None:
        """Return a step that has committed, once, or None."""
        return self._steps.pop(number) if self.has_committed(number) else None

    def forget_uncommitted(self) -> None:
        """Drop what belongs to a step that is on: its means come anew."""
        self._steps = {number: step for number, step in self._steps.items() if step.commit is not None}

    def begin_healing(self) -> None:
        """Keep whatever comes until `rebase`: the steps after a snapshot may arrive before it, and be earlier ones."""
        self.forget_uncommitted()
        self.received_until = 0

    def rebase(self, next_step: int) -> None:
        """Go on from a state before `next_step`; what came of it and later steps stays."""
        self._steps = {number: step for number, step in self._steps.items() if number >= next_step}
        self.received_until = next_step
        while (step := self._steps.get(self.received_until)) is not None and step.commit is not None:
            self.received_until += step.commit.batches or 1
