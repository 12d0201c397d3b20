"""A small TCP proxy in a thread, to cut and to delay a device's connection at will."""

import asyncio
import contextlib
import threading
from typing import Any

_CHUNK_BYTES = 1 << 16


class TcpProxy:
    """Forwards connections to `target` (host:port); listens on a free loopback port.

    Args:
        target: where connections go.
        delay_s: how long every piece of data is held back, each way.

    """

    def __init__(self, target: str, delay_s: float = 0.0) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self.delay_s = delay_s
        self.cut_after_bytes: int | None = None
        """When so many more bytes have gone up, all connections are cut, in the middle of whatever it is."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    @property
    def address(self) -> str:
        """Where to connect to instead of the target."""
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Cut all connections; new ones are accepted."""
        self._loop.call_soon_threadsafe(self._cut)

    def close(self) -> None:
        """Stop."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _stop(self) -> None:
        self._server.close()
        self._cut()

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, there_writer}
        self._writers |= both
        pumps = [
            asyncio.create_task(self._pump(reader, there_writer, is_up=True)),
            asyncio.create_task(self._pump(there_reader, writer, is_up=False)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for end in both:
            end.transport.abort()
        self._writers -= both

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if is_up and self.cut_after_bytes is not None:
                    if len(data) >= self.cut_after_bytes:
                        writer.write(data[: self.cut_after_bytes])
                        self.cut_after_bytes = None
                        self._cut()
                        return
                    self.cut_after_bytes -= len(data)
                writer.write(data)
                await writer.drain()

    def __enter__(self) -> "TcpProxy":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
