"""Our exchange under measurement: a coordinator process, and devices as processes or as threads."""

import asyncio
import cProfile
import io
import pstats
import resource
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch
from edgenewton.v1.sketch import Sketch
from edgenewton.v1.tensor_spec import TensorSpec

from benchmarks.exchange.peers import SPAWN, repetitions
from coordinator.serving.server import CoordinatorServer
from coordinator.session.settings import SessionSettings
from edge_client.exchange import StepResult
from edge_client.exchange.remote import GradientExchange
from edge_client.sync.sketching import sketch_of

FRAME_BYTES = 1 << 20
_LAYER_ELEMENTS = 1 << 20
"""Larger models are made of layers of 4 MiB."""


@dataclass(frozen=True)
class Measured:
    """What an exchange took."""

    times: list[float]
    """Seconds of each step, of the slowest device."""
    coordinator_cpu_s: float
    """Processor seconds of the coordinator per step."""
    coordinator_peak_mib: float
    profile: str = ""


class UnchangedReplica:
    """A replica that nothing is applied to: nobody heals or falls behind in a benchmark."""

    next_step = None
    is_shared = False
    epsilon = None

    def digest(self) -> bytes:
        """Return the same on all devices."""
        return b"same"

    def frozen_sketch(self) -> None:
        """Return nothing: nothing is frozen."""

    def sketch(self, _seed: int) -> Sketch:
        """Return one of no weights."""
        return sketch_of({}, 0)

    def dump(self) -> bytes:
        """Return nothing."""
        return b""

    def load(self, _data: bytes) -> None:
        """Never called."""
        raise RuntimeError("a device healed in a benchmark")

    def apply(self, _result: StepResult) -> None:
        """Never called."""
        raise RuntimeError("a device fell behind in a benchmark")


def measure(
    members: int,
    size: int,
    codec: str = "fp32",
    *,
    threads: bool = False,
    steps: int | None = None,
    profile: bool = False,
) -> Measured:
    """Return what exchanging gradients of `size` float32 bytes takes.

    Args:
        members: devices.
        size: bytes of the gradients.
        codec: of the session.
        threads: devices are threads of this process, not processes.
        steps: how many are timed; None for as many as suits the size.
        profile: profile the coordinator.

    """
    count = steps or repetitions(size)
    pipe, there = SPAWN.Pipe()
    coordinator = SPAWN.Process(target=_serve, args=(there, members, codec, profile), daemon=True)
    coordinator.start()
    address = pipe.recv()
    queue: Any = SPAWN.Queue()
    kind = threading.Thread if threads else SPAWN.Process
    devices = [
        kind(target=_device, args=(address, f"d{index}", size, count, queue), daemon=True) for index in range(members)
    ]
    for device in devices:
        device.start()
    timings = [queue.get(timeout=300) for _ in devices]
    for device in devices:
        device.join(30)
    pipe.send("stop")
    cpu, peak, text = pipe.recv()
    coordinator.join(30)
    slowest = [max(times) for times in zip(*timings, strict=True)]
    return Measured(slowest, cpu / (count + 3), peak, text)


def layers(size: int) -> list[TensorSpec]:
    """Return the fingerprint of a model with gradients of `size` bytes."""
    elements = size // 4
    specs: list[TensorSpec] = []
    while elements > 0:
        rows = max(1, min(elements, _LAYER_ELEMENTS) // 1024)
        columns = min(elements, _LAYER_ELEMENTS) // rows
        specs.append(TensorSpec(f"layer{len(specs)}", (rows, columns)))
        elements -= rows * columns
    return specs


def _device(address: str, name: str, size: int, steps: int, results: Any) -> None:
    torch.set_num_threads(1)
    exchange = GradientExchange.connect(address, session="benchmark", device=name, connect_timeout_s=60)
    specs = layers(size)
    membership = exchange.join(specs, {}, UnchangedReplica())
    gradients = {(spec.kind, spec.name): torch.ones(spec.shape) for spec in specs}
    times = []
    for _ in range(steps + 3):
        began = time.perf_counter()
        membership.begin(32)
        for key, gradient in gradients.items():
            membership.contribute(key, gradient)
        membership.complete(0.0)
        membership.collect()
        times.append(time.perf_counter() - began)
    results.put(times[3:])
    exchange.close()


def _serve(pipe: Any, members: int, codec: str, profiled: bool) -> None:
    profile = cProfile.Profile()
    asyncio.run(
        _run(
            pipe,
            SessionSettings.model_validate(
                {"devices": members, "codec": codec, "lease_s": 120, "frame_bytes": FRAME_BYTES}
            ),
            profile if profiled else None,
        )
    )


async def _run(pipe: Any, settings: SessionSettings, profile: cProfile.Profile | None) -> None:
    server = CoordinatorServer()
    server.directory.create("benchmark", settings)
    await server.start()
    before = time.process_time()
    pipe.send(server.address)
    if profile is not None:
        profile.enable()
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    text = io.StringIO()
    if profile is not None:
        profile.disable()
        pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(18)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send((time.process_time() - before, peak, text.getvalue()))
    await server.stop("measured")
