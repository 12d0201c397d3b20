"""Our own exchange without the network: the devices' writers, the coordinator's rule, its writer, and their bytes."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from edgenewton.common.evaluation import Evaluation
from edgenewton.v1.codecs import CodecChoice, Data, Float32Array
from edgenewton.v1.framing import Layout, Slice, SliceWriter
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from coordinator.session.aggregation import WeightedMean
from edge_client.exchange import Replica, StepResult, TensorKey, Traffic
from edge_client.exchange.interface import Pace, Stages, no_stages
from edge_client.exchange.remote.device_stages import DeviceStages

_FRAME_BYTES = 1 << 20
_TIMEOUT_S = 600.0


class Meeting:
    """The devices of one session, each in a thread of its own; the last to come adds up for all.

    Args:
        devices: how many there are.
        choice: of the codec.

    """

    def __init__(self, devices: int, choice: CodecChoice) -> None:
        self.choice = choice
        self.up = 0
        """Bytes of payload that all devices have sent together."""
        self.down = 0
        """Bytes of payload that each has received."""
        self._sent: dict[int, tuple[int, list[tuple[Slice, Data]]]] = {}
        self._means: dict[int, Float32Array] = {}
        self._barrier = threading.Barrier(devices, action=self._add_up)
        self._writer: SliceWriter | None = None
        self._step = 0

    def layout(self, tensors: Sequence[TensorSpec]) -> Layout:
        """Return the slices of a device's tensors, which are those of all devices."""
        layout = Layout(tuple(tensors), self.choice.policy(), _FRAME_BYTES)
        self._writer = self._writer or SliceWriter(layout)
        return layout

    def meet(self, device: int, step: int, samples: int, sent: list[tuple[Slice, Data]]) -> dict[int, Float32Array]:
        """Hand in what a device has written, wait for the others, and return the means as they arrive."""
        self._sent[device], self._step = (samples, sent), step
        self._barrier.wait(_TIMEOUT_S)
        return self._means

    def abort(self) -> None:
        """Let nobody wait any more."""
        self._barrier.abort()

    def _add_up(self) -> None:
        assert self._writer is not None
        self._means = {}
        for number, (piece, _) in enumerate(self._sent[0][1]):
            mean = WeightedMean()
            for device, (samples, sent) in self._sent.items():
                data = sent[number][1]
                self.up += memoryview(data).nbytes
                mean.add(str(device), piece.decode(data, self._step), samples)
            written = self._writer.encode(piece, mean.result(), self._step)
            self.down += memoryview(written).nbytes
            whole = self._means.setdefault(piece.key.tensor, np.empty(piece.spec.size, np.float32))
            whole[piece.key.offset : piece.key.offset + piece.length] = piece.decode(written, self._step)


class LockstepExchange:
    """One device's way to a meeting."""

    is_alone = False
    traffic = Traffic()

    def __init__(self, meeting: Meeting, index: int) -> None:
        self.device = f"device-{index}"
        self._meeting = meeting
        self._index = index

    def join(
        self,
        tensors: Sequence[TensorSpec],
        options: Mapping[str, str],  # noqa: ARG002
        replica: Replica,  # noqa: ARG002
        training_samples: int = 0,  # noqa: ARG002
        stages: Stages = no_stages,
    ) -> "LockstepMembership":
        """Take a place."""
        return LockstepMembership(self._meeting, self._index, tensors, stages)

    def close(self, failure: str = "", *, ended: str = "") -> None:
        """Nothing is held."""


class LockstepMembership:
    """A place among devices that are always in time."""

    first_batches = None

    def __init__(self, meeting: Meeting, index: int, tensors: Sequence[TensorSpec], stages: Stages) -> None:
        self.step = 0
        self._meeting = meeting
        self._index = index
        self._layout = meeting.layout(tensors)
        self._specs = tuple(tensors)
        self._numbers = {(spec.kind, spec.name): number for number, spec in enumerate(tensors)}
        self._stages = DeviceStages(meeting.choice, stages)
        self._writer = SliceWriter(self._layout, self._stages.policy)

    def begin(self, samples: int, *, is_repeated: bool = False) -> None:  # noqa: ARG002
        """Begin the next step."""
        self._samples = samples
        self._sent: list[tuple[Slice, Data]] = []

    def skip(self) -> None:
        """Nobody skips a batch here."""
        raise RuntimeError("a batch of the benchmark cannot be used")

    def contribute(self, key: TensorKey, value: Tensor) -> None:
        """Write one tensor."""
        flat = value.detach().float().contiguous().view(-1).numpy()
        for piece in self._layout.slices(self._numbers[key]):
            values = flat[piece.key.offset : piece.key.offset + piece.length]
            self._sent.append((piece, bytes(self._writer.encode(piece, values, self.step))))

    def complete(
        self,
        loss: float,
        evaluation: Evaluation | None = None,  # noqa: ARG002
        hyperparameters: Mapping[str, float] | None = None,  # noqa: ARG002
        batches: int = 1,
        pace: Pace | None = None,  # noqa: ARG002
    ) -> None:
        """Note the end of the contribution."""
        self._loss, self._batches = loss, batches

    def has_committed(self, step: int) -> bool:
        """Return whether a step is over."""
        return self.step > step

    def collect(self, *, catches_up: bool = True) -> StepResult:  # noqa: ARG002
        """Meet the others."""
        means = self._meeting.meet(self._index, self.step, self._samples, self._sent)
        tensors = {}
        for number, mean in means.items():
            spec = self._specs[number]
            values = self._stages.undo(spec, mean.copy(), self.step)
            tensors[spec.kind, spec.name] = torch.from_numpy(values).view(spec.shape)
        result = StepResult(self.step, tensors, self._samples, devices=1, loss=self._loss, batches=self._batches)
        self.step = result.next_step
        return result

    def resume_at(self, step: int) -> None:
        """Nobody comes late here."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing is saved here."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is saved here."""
