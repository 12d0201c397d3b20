"""What masks cost: bytes and time of masked sessions, beside int8 sessions that take turns with them.

Eight devices are processes, and this process is their coordinator. Each pair of sessions trains the same batches; what
else the machine does strikes both alike, and medians over the pairs are taken.
"""

import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.exchange.peers import SPAWN
from benchmarks.privacy.fleet import DEVICES, batch_of, be_quiet, digits
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer

BATCH = 32
WARM_UP = 3
"""Steps that are not timed; their bytes count."""
KINDS: Mapping[str, Mapping[str, object]] = {"int8": {"codec": "int8"}, "masked": {"secure_aggregation": True}}
_WAIT_S = 900


@dataclass(frozen=True)
class Cost:
    """Of one session."""

    kind: str
    step_s: float
    """Seconds of a step after the first ones, of the slowest device."""
    processor_s: float
    """Processor seconds of a step, of all devices and the coordinator together."""
    sent: int
    """Bytes of all devices in the whole session."""
    received: int


@dataclass(frozen=True)
class Ratio:
    """Masked over int8: medians of pairs."""

    step: float
    processor: float
    bytes: float
    sent: float
    received: float


def demo_network() -> nn.Module:
    """Return the network of the digits demo."""
    torch.manual_seed(0)
    return digits().model()


def large_network() -> nn.Module:
    """Return a network with a million parameters (994,186) for the same images."""
    torch.manual_seed(0)
    layers = OrderedDict(
        flatten=nn.Flatten(), wide=nn.Linear(64, 1024), relu1=nn.ReLU(), deep=nn.Linear(1024, 896), relu2=nn.ReLU()
    )
    layers["output"] = nn.Linear(896, 10)
    return nn.Sequential(layers)


NETWORKS = {"digits": demo_network, "1m": large_network}


def measure(network: str, pairs: int, steps: int) -> list[tuple[Cost, Cost]]:
    """Return what sessions of some steps cost, in pairs of int8 and masked, which take turns in going first."""
    order = [kind for pair in range(pairs) for kind in (list(KINDS) if pair % 2 == 0 else reversed(list(KINDS)))]
    sessions = [(f"{network}-{number}-{kind}", kind) for number, kind in enumerate(order)]
    results: Any = SPAWN.Queue()
    with embedded_coordinator() as coordinator:
        for name, kind in sessions:
            limits = {"join_deadline_s": _WAIT_S, "step_deadline_s": 120, "lease_s": _WAIT_S}
            settings = {"devices": DEVICES, **limits, **KINDS[kind]}
            coordinator.create_session(name, SessionSettings.model_validate(settings))
        names = [name for name, _ in sessions]
        devices = [
            SPAWN.Process(
                target=_device, args=(coordinator.address, index, network, names, steps, results), daemon=True
            )
            for index in range(DEVICES)
        ]
        for device in devices:
            device.start()
        costs = [_of_session(kind, results, steps) for _, kind in sessions]
        for device in devices:
            device.join(30)
    return [_in_order(*pair) for pair in zip(costs[::2], costs[1::2], strict=True)]


def ratios(pairs: Sequence[tuple[Cost, Cost]]) -> Ratio:
    """Return the medians of masked over int8."""

    def of(value: Callable[[Cost], float]) -> float:
        return round(statistics.median(value(masked) / value(plain) for plain, masked in pairs), 3)

    return Ratio(
        step=of(lambda cost: cost.step_s),
        processor=of(lambda cost: cost.processor_s),
        bytes=of(lambda cost: cost.sent + cost.received),
        sent=of(lambda cost: cost.sent),
        received=of(lambda cost: cost.received),
    )


def _in_order(one: Cost, other: Cost) -> tuple[Cost, Cost]:
    return (one, other) if one.kind == "int8" else (other, one)


def _of_session(kind: str, results: Any, steps: int) -> Cost:
    """Take what all devices say of a session; the coordinator's own processor time is that until they have said it."""
    before = time.process_time()
    said = [results.get(timeout=_WAIT_S) for _ in range(DEVICES)]
    own = time.process_time() - before
    step_s = max(seconds for seconds, *_ in said) / (steps - WARM_UP)
    processor_s = own / steps + sum(processor for _, processor, _, _ in said) / (steps - WARM_UP)
    return Cost(kind, step_s, processor_s, sum(sent for *_, sent, _ in said), sum(received for *_, received in said))


def _device(address: str, index: int, network: str, sessions: Sequence[str], steps: int, results: Any) -> None:
    be_quiet()
    for session in sessions:
        model = NETWORKS[network]()
        with GradientExchange.connect(address, session=session, device=f"d{index}", connect_timeout_s=60) as exchange:
            optimizer = NewtonOptimizer(model, sync=EveryBatch(exchange))
            optimizer.join()
            used = began = 0.0
            for step in range(steps):
                if step == WARM_UP:
                    used, began = time.process_time(), time.perf_counter()
                samples = batch_of(index, step, BATCH)
                optimizer.zero_grad()
                loss = digits().loss(model(samples.inputs), samples.targets)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.report(loss.item())
                optimizer.step()
            seconds, processor = time.perf_counter() - began, time.process_time() - used
            traffic = exchange.traffic
        results.put((seconds, processor, traffic.sent, traffic.received))
