"""Asks servers of recognition from one event loop, with as little work of its own as possible: latency, throughput."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.inference.bare_grpc import BareGrpc

Ask = Callable[[], Awaitable[None]]
"""Sends one request and waits for its answer."""
Connect = Callable[[], Awaitable[tuple[Ask, Callable[[], Awaitable[None]]]]]
"""Opens a connection; returns what asks over it and what closes it."""

_METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Measured:
    """What clients saw."""

    clients: int
    requests: int
    throughput: float
    """Answers per second, all clients together."""
    p50_ms: float
    p99_ms: float


def grpc_client(address: str, request: bytes) -> Connect:
    """Return what connects to a server of the Open Inference Protocol; a request is sent as ready bytes."""

    async def connect() -> tuple[Ask, Callable[[], Awaitable[None]]]:
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: BareGrpc(_METHOD, address, request), host, int(port))

        async def close() -> None:
            client.close()

        return client.ask, close

    return connect


def http_client(address: str, path: str, body: bytes) -> Connect:
    """Return what connects to a server over HTTP/1.1, sends it JSON, and keeps the connection."""
    host, _, port = address.rpartition(":")
    head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    request = f"{head}\r\n\r\n".encode() + body

    async def connect() -> tuple[Ask, Callable[[], Awaitable[None]]]:
        reader, writer = await asyncio.open_connection(host, int(port))

        async def ask() -> None:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 200"):
                raise RuntimeError(f"{address} answered {head.splitlines()[0].decode()}")
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)

        async def close() -> None:
            writer.close()

        return ask, close

    return connect


def measure(connect: Connect, clients: int, seconds: float, pause_s: float = 0.0) -> Measured:
    """Let clients ask for some seconds, each as soon as it has its answer (and after a pause, if one is given)."""
    return asyncio.run(_measure(connect, clients, seconds, pause_s))


async def _measure(connect: Connect, clients: int, seconds: float, pause_s: float) -> Measured:
    connections = [await connect() for _ in range(clients)]
    latencies: list[float] = []
    warm_until = time.perf_counter() + min(1.0, seconds / 5)
    end = warm_until + seconds

    async def run(ask: Ask) -> None:
        while (began := time.perf_counter()) < end:
            await ask()
            if began >= warm_until:
                latencies.append(time.perf_counter() - began)
            if pause_s:
                await asyncio.sleep(pause_s)

    await asyncio.gather(*(run(ask) for ask, _ in connections))
    for _, close in connections:
        await close()
    return summary(latencies, clients, seconds)


def summary(latencies: Any, clients: int, seconds: float) -> Measured:
    """Return what latencies in seconds come to."""
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return Measured(clients, len(latencies), len(latencies) / seconds, float(p50), float(p99))
