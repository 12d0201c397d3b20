"""An HTTP server as a part of a program that has an event loop, a log and signals of its own."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn

log = logging.getLogger(__name__)


class HttpServer:
    """Serves an ASGI application on one address. Use it on a running event loop.

    Args:
        app: the application.
        host: address to listen on.
        port: port to listen on; 0 takes a free one, which `port` tells after `start`.
        purpose: what it is for, in messages.
        tls: context for TLS, which may demand certificates of clients; None for plaintext. Certificates that are loaded
            into it later count for the connections that come then.
        max_connections: more at once are answered "503 Service Unavailable".
        drain_s: seconds that `stop` gives the requests that are under way.

    """

    def __init__(
        self,
        app: Any,
        host: str,
        port: int,
        *,
        purpose: str,
        tls: ssl.SSLContext | None = None,
        max_connections: int | None = None,
        drain_s: int = 5,
    ) -> None:
        self.host = host
        self.port = port
        self.purpose = purpose
        self.tls = tls
        self._task: asyncio.Task[None] | None = None
        self._server = _QuietServer(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                limit_concurrency=max_connections,
                timeout_graceful_shutdown=drain_s,
                ssl_context_factory=None if tls is None else lambda _config, _default: tls,
            )
        )

    @property
    def url(self) -> str:
        """Where it listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.tls is None else 'https'}://{host}:{self.port}"

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be listened on.

        """
        host, port = self.host, self.port
        try:
            listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port} for {self.purpose}: {error.strerror or error}") from None
        # Connections inherit it. Without it, an answer in two pieces waits 40 ms for the client's acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._serve(listener), name=self.purpose)
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Answer what has come, and stop listening."""
        self._server.should_exit = True
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _serve(self, listener: socket.socket) -> None:
        try:
            await self._server.serve([listener])
        except Exception:  # what else the program does goes on
            log.exception("the server for %s has ended", self.purpose)


class _QuietServer(uvicorn.Server):
    """Leaves signals to the process that it is a part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing about signals."""
        yield
