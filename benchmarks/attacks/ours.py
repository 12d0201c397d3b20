"""A session of ours in one process: its devices one after the other, its coordinator's own state machine and rules.

All devices hold the same weights, so one model and one optimizer stand for all of them: it computes each device's
batch, and the means of the session move it once. What is exchanged goes through `Session` slice by slice, as the
coordinator's service hands it over; only the network is left out, and codecs: tensors travel in fp32.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from edgenewton.common.evaluation import Evaluation
from edgenewton.v1.codecs import CodecChoice
from edgenewton.v1.framing import Layout, SliceKey
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from benchmarks.attacks.attacks import Attack, Sent
from benchmarks.attacks.data import Fleet
from coordinator.session.decisions import DeviceUnlike, SliceReady, StepCommitted
from coordinator.session.members import Joining
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.session.step import Contribution
from edge_client.exchange import Replica, StepResult, TensorKey, Traffic
from edge_client.exchange.interface import Pace, Stages, no_stages
from edge_client.optim import NewtonOptimizer
from edge_client.sync import EveryBatch
from edge_client.training.evaluation import evaluate
from edge_client.training.trainer import build_model

STEPS = 60


def accuracy(fleet: Fleet, rule: str, attack: Attack, bad: int, seed: int, steps: int = STEPS) -> float:
    """Return the accuracy that devices reach with a rule of the coordinator while some of them attack."""
    exchange = SimulatedExchange(fleet.devices, rule, attack, bad)
    model = build_model(fleet.task, seed)
    optimizer = NewtonOptimizer(model, sync=EveryBatch(exchange, overlap=False))
    for step in range(steps):
        for device in range(fleet.devices):
            inputs, targets = fleet.batch(device, step)
            optimizer.zero_grad()
            loss = fleet.task.loss(model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.report(loss.item())
            optimizer.step()
    with optimizer.averaged():
        return evaluate(model, fleet.task, fleet.test).accuracy


class SimulatedExchange:
    """The one place of a model that stands for all devices."""

    device = "all"
    is_alone = False
    traffic = Traffic()

    def __init__(self, devices: int, rule: str, attack: Attack, bad: int) -> None:
        self.unlike: list[DeviceUnlike] = []
        """Who was named, and for what."""
        self._devices, self._rule, self._attack, self._bad = devices, rule, attack, bad

    def join(
        self,
        tensors: Sequence[TensorSpec],
        options: Mapping[str, str],  # noqa: ARG002
        replica: Replica,  # noqa: ARG002
        training_samples: int = 0,  # noqa: ARG002
        stages: Stages = no_stages,  # noqa: ARG002
    ) -> "SimulatedMembership":
        """Let all devices join a session."""
        settings = SessionSettings.model_validate({"devices": self._devices, "aggregator": self._rule})
        session = Session("attacked", settings)
        for index in range(self._devices):
            session.join(Joining(f"d{index}", tuple(tensors), {}, b"same"), now=0.0)
        session.take_decisions()
        layout = Layout(tuple(tensors), CodecChoice("fp32").policy(), settings.frame_bytes)
        return SimulatedMembership(session, layout, self._attack, self._bad, self.unlike)

    def close(self, failure: str = "", *, ended: str = "") -> None:
        """Nothing is held."""


class SimulatedMembership:
    """Collects what the devices contribute; the last one lets the session combine it."""

    first_batches = None

    def __init__(self, session: Session, layout: Layout, attack: Attack, bad: int, unlike: list[DeviceUnlike]) -> None:
        self.step = 0
        self._session, self._layout, self._attack, self._bad, self._unlike = session, layout, attack, bad, unlike
        self._numbers = {(spec.kind, spec.name): number for number, spec in enumerate(layout.fingerprint)}
        self._sent: list[Sent] = []
        self._tensors: dict[TensorKey, Tensor] = {}

    def begin(self, samples: int, *, is_repeated: bool = False) -> None:  # noqa: ARG002
        """Begin a device's contribution."""
        self._samples, self._tensors = samples, {}

    def skip(self) -> None:
        """Nobody skips a batch here."""
        raise RuntimeError("a batch of the benchmark cannot be used")

    def contribute(self, key: TensorKey, value: Tensor) -> None:
        """Take one tensor."""
        self._tensors[key] = value.detach().clone()

    def complete(
        self,
        loss: float,
        evaluation: Evaluation | None = None,  # noqa: ARG002
        hyperparameters: Mapping[str, float] | None = None,  # noqa: ARG002
        batches: int = 1,  # noqa: ARG002
        pace: Pace | None = None,  # noqa: ARG002
    ) -> None:
        """Note the end of a device's contribution."""
        self._loss = loss
        self._sent.append(Sent(self._samples, self._tensors))

    def has_committed(self, step: int) -> bool:
        """Return whether a step is over."""
        return self.step > step

    def collect(self, *, catches_up: bool = True) -> StepResult:  # noqa: ARG002
        """Return a result without samples, which changes nothing, until all devices have contributed."""
        if len(self._sent) < len(self._session.members):
            return StepResult(self.step, {}, samples=0, devices=0, loss=math.nan)
        sent, self._sent = self._attack.apply(self._sent, self._bad), []
        for index, own in enumerate(sent):
            self._hand_in(f"d{index}", own)
        result = StepResult(self.step, self._results(), sent[0].samples, len(sent), self._loss)
        self.step += 1
        return result

    def resume_at(self, step: int) -> None:
        """Nobody comes late here."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing is saved here."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is saved here."""

    def _hand_in(self, device: str, own: Sent) -> None:
        """Let the session take a device's contribution."""
        for key, value in own.tensors.items():
            flat = value.float().contiguous().view(-1).numpy()
            for piece in self._layout.slices(self._numbers[key]):
                if self._session.wants(device, self.step, own.samples, piece.key, now=0.0):
                    values = flat[piece.key.offset : piece.key.offset + piece.length]
                    self._session.contribute(device, own.samples, piece.key, values)
        self._session.complete(device, self.step, Contribution(own.samples, self._loss), now=0.0)

    def _results(self) -> dict[TensorKey, Tensor]:
        """Let the session combine what came, and return it."""
        self._session.advance(0.0)
        decisions = self._session.take_decisions()
        if not any(isinstance(decision, StepCommitted) for decision in decisions):
            raise RuntimeError(f"step {self.step} did not commit: {self._session.reason}")
        self._unlike += [decision for decision in decisions if isinstance(decision, DeviceUnlike)]
        pieces: dict[SliceKey, np.ndarray[Any, Any]] = {
            decision.key: decision.values for decision in decisions if isinstance(decision, SliceReady)
        }
        results = {}
        for number in sorted({key.tensor for key in pieces}):
            spec = self._layout.fingerprint[number]
            whole = np.concatenate([pieces[piece.key] for piece in self._layout.slices(number)])
            results[spec.kind, spec.name] = torch.from_numpy(whole).view(spec.shape)
        return results
