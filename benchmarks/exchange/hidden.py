"""How much of the communication hides behind backward: layers leave and come back while others are still computed.

Three times are measured of the same model and batch, with the same processes on the same cores: computing alone,
communicating alone (the same gradients, ready at once), and both as they are in training. What is hidden is what the
third saves against the sum of the others.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.exchange.peers import SPAWN
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client.curvature.batch import Batch
from edge_client.exchange.remote import GradientExchange
from edge_client.sync import EveryBatch
from edge_client.sync.plan import Report, Subject

_WIDTH, _DEPTH, _BATCH = 384, 12, 192
"""A model of 7 MB whose backward takes some tens of milliseconds."""


@dataclass(frozen=True)
class Hidden:
    """What was measured, in milliseconds of the median batch."""

    compute_ms: float
    alone_ms: float
    """Communication when nothing is computed."""
    together_ms: float
    fraction: float
    """Part of the communication that costs no time."""


def hidden_fraction(batches: int) -> Hidden:
    """Return how much of the communication is hidden.

    There are as many device processes as leave a core to the coordinator: where all cores compute, communication, which
    on loopback is computing too, has nothing to hide behind.
    """
    devices = max(1, (os.cpu_count() or 2) - 1)
    compute = _compute(devices, batches)
    alone = _run(devices, batches, computes=False)
    together = _run(devices, batches, computes=True)
    fraction = max(0.0, min(1.0, (compute + alone - together) / alone))
    return Hidden(1e3 * compute, 1e3 * alone, 1e3 * together, fraction)


def _compute(devices: int, batches: int) -> float:
    queue: Any = SPAWN.Queue()
    processes = [SPAWN.Process(target=_lone_device, args=(batches, queue), daemon=True) for _ in range(devices)]
    return _slowest(processes, queue)


def _lone_device(batches: int, results: Any) -> None:
    # More batches than are timed, so that the others compute as long as one is timed.
    _batches(None, batches)
    times = _batches(None, batches)
    results.put(_median(times))
    _batches(None, batches)


def _run(devices: int, batches: int, *, computes: bool) -> float:
    queue: Any = SPAWN.Queue()
    with embedded_coordinator() as coordinator:
        coordinator.create_session("hidden", SessionSettings(devices=devices, lease_s=120))
        processes = [
            SPAWN.Process(target=_device, args=(coordinator.address, index, batches, computes, queue), daemon=True)
            for index in range(devices)
        ]
        return _slowest(processes, queue)


def _slowest(processes: Sequence[Any], medians: Any) -> float:
    """Run processes that each put the median of their times into a queue; return the largest."""
    for process in processes:
        process.start()
    slowest: float = max(medians.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(30)
    return slowest


def _device(address: str, index: int, batches: int, computes: bool, results: Any) -> None:
    exchange = GradientExchange.connect(address, session="hidden", device=f"d{index}", connect_timeout_s=60)
    results.put(_median(_batches(exchange, batches, computes=computes)))
    exchange.close()


def _batches(exchange: Any, batches: int, *, computes: bool = True) -> list[float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(_DEPTH) for layer in (nn.Linear(_WIDTH, _WIDTH), nn.ReLU())])
    plan = None
    if exchange is not None:
        plan = EveryBatch(exchange)
        batch = Batch(model, [], before=lambda: None, is_captured=lambda: False, samples_fisher=False)
        subject = Subject(
            model,
            [],
            batch,
            lambda _: False,
            [],
            skips_nonfinite=False,
            apply=lambda _: None,
            average=lambda _: None,
            damping_of=lambda _: 0.0,
        )
        plan.attach(subject)
        plan.join({})
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(partial(_after_gradient, batch, plan))  # type: ignore[no-untyped-call]
    x = torch.randn(_BATCH, _WIDTH)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    times = []
    for _ in range(batches + 2):
        began = time.perf_counter()
        if computes:
            model.zero_grad()
            model(x).square().mean().backward()
        if plan is not None:
            plan.before_update(Report())
        times.append(time.perf_counter() - began)
    return times[2:]


def _after_gradient(batch: Batch, plan: EveryBatch, parameter: Tensor) -> None:
    batch.confirm()
    plan.on_gradient(parameter)


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]
