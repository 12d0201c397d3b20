"""What a coordinator sees of each device: the values of its tensors, or masked integers, as its session has them."""

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from edgenewton.v1.framing import SliceKey
from torch import Tensor

from coordinator.serving.room import Room, SentFrame
from coordinator.session.robust.step_rule import Held, StepOutcome
from coordinator.session.step import Contribution, Values
from edge_client.exchange import TensorKey

_SUMS = ""
"""In place of a device's name, for the means that a step gives."""


@dataclass
class Seen:
    """What was seen of one device in one step."""

    samples: int = 1
    """That the device says its values count with; 1 if that is masked."""
    pieces: dict[SliceKey, np.ndarray[Any, Any]] = field(default_factory=dict)


class Watch:
    """Notes everything that a room's devices send, and what it knows of each; the session goes on as without it.

    Masked integers are read as an attacker reads them who takes them for what they stand for without masks.

    Args:
        room: of a session that has not begun.

    """

    def __init__(self, room: Room) -> None:
        self.frames: list[tuple[str, bytes]] = []
        """Each message of the devices' streams, with its sender, as it came."""
        self._room, self._session = room, room.session
        self._seen: dict[tuple[str, int], Seen] = defaultdict(Seen)
        self._lock = threading.Lock()
        self._read, self._contribute = room.read_frame, self._session.contribute
        room.read_frame = self._noting_frame  # type: ignore[method-assign]
        self._session.contribute = self._noting_values  # type: ignore[method-assign]
        if self._session.masking is not None:
            self._combine = self._session.masking.combine
            self._session.masking.combine = self._noting_sums  # type: ignore[method-assign]

    def tensors(self, device: str, step: int) -> dict[TensorKey, Tensor]:
        """Return what was seen of a device in a step, as tensors of the session's shapes."""
        return self._whole(self._seen[device, step].pieces)

    def sums(self, step: int) -> dict[TensorKey, Tensor]:
        """Return the means of a step whose contributions were masked: all that is known of them."""
        return self._whole(self._seen[_SUMS, step].pieces)

    def samples(self, device: str, step: int) -> int:
        """Return with how many samples a device's values count, as far as it says so."""
        return self._seen[device, step].samples

    def _whole(self, pieces: dict[SliceKey, np.ndarray[Any, Any]]) -> dict[TensorKey, Tensor]:
        found = {}
        for number in sorted({key.tensor for key in pieces}):
            spec = self._session.fingerprint[number]
            parts: Sequence[Any] = [pieces[key] for key in sorted(pieces) if key.tensor == number]
            found[spec.kind, spec.name] = torch.from_numpy(np.concatenate(parts)).view(spec.shape)
        return found

    def _noting_frame(self, device: str, data: bytes) -> SentFrame:
        with self._lock:
            self.frames.append((device, data))
        return self._read(device, data)

    def _noting_values(self, device: str, samples: int | None, key: SliceKey, values: Values) -> None:
        seen = self._seen[device, self._session.step.number]
        seen.samples, seen.pieces[key] = samples or 0, self._as_reals(key, values)
        self._contribute(device, samples, key, values)

    def _noting_sums(
        self, slices: Mapping[SliceKey, Sequence[Held]], contributions: Mapping[str, Contribution]
    ) -> StepOutcome:
        outcome = self._combine(slices, contributions)
        for key, values in outcome.values.items():
            self._seen[_SUMS, self._session.step.number].pieces[key] = values.copy()
        return outcome

    def _as_reals(self, key: SliceKey, values: Any) -> np.ndarray[Any, Any]:
        masking = self._session.masking
        if masking is None or masking.form is None:
            return np.array(values, np.float32)
        form = masking.form
        return form.of(form.layout.slice_of(key)).decode(values).astype(np.float32)
