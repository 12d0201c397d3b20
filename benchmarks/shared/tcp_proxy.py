"""A small TCP proxy, to cut, delay and slow connections: in a thread of a program, or as a process of its own.

    python -m benchmarks.shared.tcp_proxy --delay-ms 20 --rate-mbit-s 10 50051=coordinator:50051 8000=superlink:8000

listens on these loopback ports; SIGUSR1 cuts all connections.
"""

import argparse
import asyncio
import contextlib
import signal
import threading
from typing import Any

from benchmarks.shared.link_rate import LinkRate

_MAX_HELD = 256
"""Pieces of data that are under way at once, each way; a reader waits while there are so many."""


class Forwarder:
    """Forwards connections from a loopback port to a target, on a running event loop.

    Args:
        target: where connections go, as host:port.
        delay_s: how long every piece of data is under way, each way.
        rate_bit_s: bits that all connections together carry in a second, each way; None for as many as come.

    """

    def __init__(self, target: str, delay_s: float = 0.0, rate_bit_s: float | None = None) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self.delay_s = delay_s
        self._up, self._down = LinkRate(rate_bit_s), LinkRate(rate_bit_s)
        self.cut_after_bytes: int | None = None
        """When so many more bytes have gone up, all connections are cut, in the middle of whatever it is."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> int:
        """Listen, and return the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        return int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        """Cut all connections; new ones are accepted."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def stop(self) -> None:
        """Accept no more connections, and end those that there are."""
        if self._server is not None:
            self._server.close()
        await _end(*self._connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._forward(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward a connection until one of its ends closes."""
        ends = {writer}
        pumps: list[asyncio.Task[None]] = []
        try:
            there_reader, there_writer = await asyncio.open_connection(*self._target)
            ends.add(there_writer)
            self._writers |= ends
            pumps.append(asyncio.create_task(self._pump(reader, there_writer, is_up=True)))
            pumps.append(asyncio.create_task(self._pump(there_reader, writer, is_up=False)))
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # nobody is there
        finally:
            await _end(*pumps)
            self._writers -= ends
            for end in ends:
                end.transport.abort()
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_up: bool) -> None:
        """Copy until an end closes; what has left goes on `delay_s` later, and more is read meanwhile."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MAX_HELD)
        reading = asyncio.create_task(self._read(reader, under_way, self._up if is_up else self._down))
        clock = asyncio.get_running_loop().time
        try:
            while data := await self._next(under_way, clock):
                if is_up and self.cut_after_bytes is not None:
                    if len(data) >= self.cut_after_bytes:
                        writer.write(data[: self.cut_after_bytes])
                        self.cut_after_bytes = None
                        self.cut()
                        return
                    self.cut_after_bytes -= len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            await _end(reading)

    async def _read(
        self, reader: asyncio.StreamReader, under_way: "asyncio.Queue[tuple[float, bytes]]", rate: LinkRate
    ) -> None:
        data = b"-"
        while data:
            try:
                data = await reader.read(rate.piece_bytes)
            except OSError:
                data = b""
            left_at = rate.leave(len(data), asyncio.get_running_loop().time())
            await under_way.put((left_at + self.delay_s, data))

    @staticmethod
    async def _next(under_way: "asyncio.Queue[tuple[float, bytes]]", clock: Any) -> bytes:
        due, data = await under_way.get()
        if (left := due - clock()) > 0:
            await asyncio.sleep(left)
        return data


async def _end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class TcpProxy:
    """A forwarder on a free loopback port, in a thread of its own.

    Args:
        target: where connections go, as host:port.
        delay_s: how long every piece of data is under way, each way.
        rate_bit_s: bits that all connections together carry in a second, each way; None for as many as come.

    """

    def __init__(self, target: str, delay_s: float = 0.0, rate_bit_s: float | None = None) -> None:
        self._forwarder = Forwarder(target, delay_s, rate_bit_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp proxy", daemon=True)
        self._thread.start()
        self._port = asyncio.run_coroutine_threadsafe(self._forwarder.start(), self._loop).result(10)

    @property
    def address(self) -> str:
        """Where to connect to instead of the target."""
        return f"127.0.0.1:{self._port}"

    def cut(self) -> None:
        """Cut all connections; new ones are accepted."""
        self._loop.call_soon_threadsafe(self._forwarder.cut)

    def cut_after(self, count: int) -> None:
        """Cut all connections when so many more bytes have gone up, in the middle of whatever it is."""
        self._forwarder.cut_after_bytes = count

    def close(self) -> None:
        """Stop."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        await self._forwarder.stop()
        # For a connection that has just come there are tasks of asyncio's own, which may still start one of ours.
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await _end(*tasks)

    def __enter__(self) -> "TcpProxy":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


async def _serve(routes: list[str], delay_s: float, rate_bit_s: float | None) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    forwarders = []
    for route in routes:
        port, _, target = route.partition("=")
        forwarders.append(Forwarder(target, delay_s, rate_bit_s))
        await forwarders[-1].start(int(port))
        rate = "" if rate_bit_s is None else f" and {rate_bit_s / 1e6:g} Mbit/s"
        print(f"127.0.0.1:{port} leads to {target}, {1000 * delay_s:g} ms{rate} each way", flush=True)

    def cut() -> None:
        print("all connections are cut", flush=True)
        for forwarder in forwarders:
            forwarder.cut()

    loop.add_signal_handler(signal.SIGUSR1, cut)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
    for forwarder in forwarders:
        await forwarder.stop()


def main() -> None:
    """Forward until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("routes", nargs="+", metavar="PORT=HOST:PORT", help="a loopback port, and where it leads")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="how long data are under way, each way")
    parser.add_argument("--rate-mbit-s", type=float, help="how much a route carries, each way; unless given, all")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        rate_bit_s = None if arguments.rate_mbit_s is None else 1e6 * arguments.rate_mbit_s
        asyncio.run(_serve(arguments.routes, arguments.delay_ms / 1000, rate_bit_s))


if __name__ == "__main__":
    main()
