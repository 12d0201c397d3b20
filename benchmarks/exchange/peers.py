"""What our exchange is compared with: gloo's all_reduce, raw gRPC and raw TCP; each in processes of its own."""

import asyncio
import multiprocessing as mp
import os
import socket
import time
from typing import Any

import grpc
import torch
import torch.distributed as dist
from edgenewton.v1 import TRANSPORT_OPTIONS

from benchmarks.shared.ports import free_port

SPAWN = mp.get_context("spawn")


def repetitions(size: int) -> int:
    """Return how often an exchange of `size` bytes is timed."""
    return max(5, min(200, 40_000_000 // size))


def quantile(times: list[float], part: float) -> float:
    """Return a quantile of measured times."""
    return sorted(times)[min(len(times) - 1, int(part * len(times)))]


def gloo_times(members: int, size: int) -> list[float]:
    """Return the seconds of each all_reduce of `size` bytes of float32, on rank 0."""
    port = free_port()
    results: Any = SPAWN.Queue()
    processes = [SPAWN.Process(target=_gloo, args=(rank, members, size, port, results)) for rank in range(members)]
    for process in processes:
        process.start()
    times: list[float] = results.get(timeout=120)
    for process in processes:
        process.join(30)
    return times


def _gloo(rank: int, members: int, size: int, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=members)
    tensor = torch.ones(size // 4)
    times = []
    for _ in range(repetitions(size) + 3):
        began = time.perf_counter()
        dist.all_reduce(tensor)
        tensor /= members
        times.append(time.perf_counter() - began)
    if rank == 0:
        results.put(times[3:])
    dist.barrier()
    dist.destroy_process_group()


def raw_grpc_rate(message_bytes: int = 1 << 20, messages: int = 100) -> float:
    """Return bytes per second and direction of one gRPC stream that echoes messages between two processes."""
    ready: Any = SPAWN.Queue()
    server = SPAWN.Process(target=_serve_echo, args=(ready,), daemon=True)
    server.start()
    port = ready.get(timeout=60)
    seconds = asyncio.run(_call_echo(port, message_bytes, messages))
    server.kill()
    server.join()
    return message_bytes * messages / seconds


def _serve_echo(ready: Any) -> None:
    async def echo(requests: Any, context: Any) -> Any:  # noqa: ARG001
        async for request in requests:
            yield request

    async def run() -> None:
        server = grpc.aio.server(options=TRANSPORT_OPTIONS)
        methods = {"Echo": grpc.stream_stream_rpc_method_handler(echo)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("raw", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ready.put(port)
        await server.wait_for_termination()

    asyncio.run(run())


async def _call_echo(port: int, message_bytes: int, messages: int) -> float:
    data = bytes(message_bytes)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=TRANSPORT_OPTIONS) as channel:
        call = channel.stream_stream("/raw/Echo", None, None)(None)

        async def send(count: int) -> None:
            for _ in range(count):
                await call.write(data)

        seconds = 0.0
        for count in (5, messages):  # the first ones warm it up
            began = time.perf_counter()
            sender = asyncio.create_task(send(count))
            for _ in range(count):
                await call.read()
            await sender
            seconds = time.perf_counter() - began
        await call.done_writing()
        return seconds


def raw_tcp_rate(total_bytes: int = 400_000_000) -> float:
    """Return bytes per second of one TCP connection between two processes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = SPAWN.Process(target=_send_tcp, args=(listener.getsockname()[1], total_bytes), daemon=True)
        sender.start()
        connection, _ = listener.accept()
        buffer = memoryview(bytearray(1 << 20))
        with connection:
            received = connection.recv_into(buffer)
            began = time.perf_counter()
            while received < total_bytes:
                received += connection.recv_into(buffer)
            seconds = time.perf_counter() - began
        sender.join()
    return total_bytes / seconds


def _send_tcp(port: int, total_bytes: int) -> None:
    data = bytes(1 << 20)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for begin in range(0, total_bytes, len(data)):
            connection.sendall(data[: total_bytes - begin])
