"""Honest devices: real memberships of a small model, which come, go, and write down what they acknowledge."""

import contextlib
import io
import os
import random
import signal
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from edgenewton.v1.sketch import Sketch
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.exchange import ExchangeError, StepResult
from edge_client.exchange.remote import GradientExchange
from edge_client.sync.replica import dump_state, load_state, tensors_digest
from edge_client.sync.sketching import sketch_of

SESSION = "soak"
SPECS = [TensorSpec("in.weight", (48, 24)), TensorSpec("in.bias", (48,)), TensorSpec("out.weight", (10, 48))]
RATE = 0.05
BATCH_S = 0.25
"""What a batch takes, so that sixty-four devices leave two cores some time."""
STAY_S = 60.0
"""Mean of a stay."""
PAUSE_S = 4.0
"""Longest time between two stays."""
_RETRY_S = 1.0


@dataclass(frozen=True)
class Worker:
    """One process of honest devices."""

    number: int
    life: int
    """How often it was started before."""
    devices: int
    address: str
    folder: str
    seed: int


class TracedReplica:
    """A model without data: each device pulls the weights to a point of its own, with noise.

    Args:
        trace: gets a line for each thing that happens; see `benchmarks.soak.ledger`.

    """

    is_shared = True
    epsilon = None

    def __init__(self, trace: io.TextIOBase) -> None:
        self.next_step: int | None = None
        generator = torch.Generator().manual_seed(0)
        self.weights = {spec.name: torch.randn(spec.shape, generator=generator) for spec in SPECS}
        self._trace = trace

    def note(self, line: str) -> None:
        """Write a line of the trace."""
        self._trace.write(f"{line}\n")

    def digest(self) -> bytes:
        """Return the SHA-256 of the weights."""
        return tensors_digest(self.weights)

    def sketch(self, seed: int) -> Sketch:
        """Return the sketch of the weights."""
        return sketch_of(self.weights, seed)

    def frozen_sketch(self) -> None:
        """Return nothing: nothing is frozen."""

    def dump(self) -> bytes:
        """Return weights and step."""
        return dump_state({"weights": self.weights, "next_step": self.next_step})

    def load(self, data: bytes) -> None:
        """Take over what another device dumped."""
        state = load_state(data)
        self.weights, self.next_step = state["weights"], state["next_step"]
        self.note(f"H {self.next_step or 0}")

    def apply(self, result: StepResult) -> None:
        """Move the weights by the means of a step."""
        for spec in SPECS:
            self.weights[spec.name] -= RATE * result.tensors[spec.kind, spec.name]
        self.next_step = result.next_step
        checksum = zlib.crc32(b"".join(weights.numpy().tobytes() for weights in self.weights.values()))
        self.note(f"A {result.step} {checksum:08x}")

    def gradient(self, spec: TensorSpec, draw: torch.Generator) -> Tensor:
        """Return what pulls to zero, with noise."""
        return self.weights[spec.name] + 0.1 * torch.randn(spec.shape, generator=draw)


def run_worker(worker: Worker) -> None:
    """Run a worker's devices, each in a thread, until SIGTERM; then they leave."""
    is_over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: is_over.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _log_to(Path(worker.folder) / f"honest-{worker.number}.log")
    devices = [
        threading.Thread(target=_live, args=(worker, index, is_over), daemon=True) for index in range(worker.devices)
    ]
    for device in devices:
        device.start()
    is_over.wait()
    deadline = time.monotonic() + 30
    for device in devices:
        device.join(max(0.0, deadline - time.monotonic()))
    os._exit(0)


def _live(worker: Worker, index: int, is_over: threading.Event) -> None:
    name = f"honest-{worker.number}-{index}"
    draw = random.Random(f"{worker.seed} {name} {worker.life}")
    noise = torch.Generator().manual_seed(draw.getrandbits(32))
    with (Path(worker.folder) / f"{name}.trace").open("a", buffering=1) as trace:
        trace.write("\n")
        replica = TracedReplica(trace)
        while not is_over.is_set():
            try:
                _stay(worker.address, name, replica, draw, noise, is_over)
                replica.note("L")
            except ExchangeError as error:
                replica.note("E " + str(error).replace("\n", " "))
                is_over.wait(_RETRY_S)
            if draw.random() < 0.5:  # it begins anew, or goes on with what it has
                replica = TracedReplica(trace)
            is_over.wait(draw.uniform(0.0, PAUSE_S))


def _stay(
    address: str,
    name: str,
    replica: TracedReplica,
    draw: random.Random,
    noise: torch.Generator,
    is_over: threading.Event,
) -> None:
    """Take part for a time; return when the device has left.

    Raises:
        ExchangeError: it was not let in, or lost its place.

    """
    exchange = GradientExchange.connect(
        address, session=SESSION, device=name, connect_timeout_s=30.0, reconnect_deadline_s=60.0
    )
    with contextlib.closing(exchange):
        replica.note(f"J {'-' if replica.next_step is None else replica.next_step}")
        membership = exchange.join(SPECS, {}, replica)
        replica.note(f"M {membership.step}")
        ends = time.monotonic() + draw.expovariate(1 / STAY_S)
        while time.monotonic() < ends and not is_over.is_set():
            time.sleep(BATCH_S * draw.uniform(0.5, 1.0))
            membership.begin(8)
            for spec in SPECS:
                membership.contribute((spec.kind, spec.name), replica.gradient(spec, noise))
            membership.complete(1.0)
            result = membership.collect()
            if not result.is_healed:
                replica.apply(result)


def _log_to(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
