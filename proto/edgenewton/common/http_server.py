"""An HTTP server as a part of a program that has an event loop, a log and signals of its own."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn

from edgenewton.common.connection_limits import ConnectionLimits
from edgenewton.common.http_protocol import HttpLimits, LimitedHttp, plain_answer

log = logging.getLogger(__name__)

_BACKLOG = 1024
"""Connections that the system holds until they are accepted."""
_PAUSE_S = 1.0
"""Seconds until connections are accepted again after the system refused one, for want of file descriptors or memory."""


class HttpServer:
    """Serves an ASGI application on one address. Use it on a running event loop.

    Args:
        app: the application.
        host: address to listen on.
        port: port to listen on; 0 takes a free one, which `port` tells after `start`.
        purpose: what it is for, in messages.
        tls: context for TLS, which may demand certificates of clients; None for plaintext. Certificates that are loaded
            into it later count for the connections that come then.
        limits: what one client may take of it.
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
        limits: HttpLimits | None = None,
        drain_s: int = 5,
    ) -> None:
        self.host = host
        self.port = port
        self.purpose = purpose
        self.tls = tls
        self._limits = limits or HttpLimits()
        self._places = ConnectionLimits(self._limits.max_connections, self._limits.max_connections_per_client)
        self._connections: set[_Connection] = set()
        self._serving: asyncio.Task[None] | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._config = uvicorn.Config(
            app,
            log_config=None,
            log_level="error",  # a line for each request that is none would fill a disk
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,  # a client is who connects, not who it says it is
            timeout_keep_alive=self._limits.idle_s,
            timeout_graceful_shutdown=drain_s,
        )
        self._server = _QuietServer(self._config)

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
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port} for {self.purpose}: {error.strerror or error}") from None
        # Connections inherit it. Without it, an answer in two pieces waits 40 ms for the client's acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._serving = asyncio.create_task(self._serve(), name=self.purpose)
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.01)
        self._accepting = asyncio.create_task(self._accept(listener), name=f"connections to {self.purpose}")

    async def stop(self) -> None:
        """Answer what has come, and stop listening."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait((self._accepting,))
        self._server.should_exit = True
        if self._serving is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._serving
        for connection in list(self._connections):  # a handshake, or a client that does not take its answer
            connection.drop()

    async def _serve(self) -> None:
        try:
            await self._server.serve([])  # it is given connections, not sockets that it would listen on
        except Exception:  # what else the program does goes on
            log.exception("the server for %s has ended", self.purpose)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    accepted, address = await loop.sock_accept(listener)
                except OSError as error:
                    log.warning("the server for %s cannot accept a connection: %s", self.purpose, error)
                    await asyncio.sleep(_PAUSE_S)
                    continue
                connection = _Connection(self, accepted, address[0])
                if self._places.admit(connection, connection.address):
                    self._connections.add(connection)
                    connection.begin()
                else:
                    self._turn_away(accepted)
                await asyncio.sleep(0)  # a flood of connections leaves the loop to others

    def _turn_away(self, accepted: socket.socket) -> None:
        with accepted:
            if self.tls is None:
                with contextlib.suppress(OSError):
                    accepted.send(plain_answer(b"503 Service Unavailable", "too many connections; try again later"))

    def forget(self, connection: "_Connection") -> None:
        """Take the place of a connection back that has ended."""
        self._connections.discard(connection)
        self._places.remove(connection, connection.address)

    async def greet(self, connection: "_Connection") -> LimitedHttp | None:
        """Return the protocol of a connection once its handshake is over; None if that failed."""
        protocol = LimitedHttp(
            self._config, self._server.server_state, self._limits, on_lost=lambda: self.forget(connection)
        )
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                connection.accepted,
                ssl=self.tls,
                ssl_handshake_timeout=None if self.tls is None else self._limits.head_s,
                ssl_shutdown_timeout=None if self.tls is None else self._limits.head_s,
            )
        except OSError:  # ssl's errors and those of the link are such
            return None
        return protocol


class _Connection:
    """A connection that was accepted: first its handshake, if there is TLS, then its protocol."""

    def __init__(self, server: HttpServer, accepted: socket.socket, address: str) -> None:
        self.accepted = accepted
        self.address = address
        self._server = server
        self._protocol: LimitedHttp | None = None
        self._greeting: asyncio.Task[None] | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for its client."""
        return self._protocol is None or self._protocol.is_waiting

    def begin(self) -> None:
        """Begin with the handshake."""
        self._greeting = asyncio.create_task(self._greet(), name="handshake")
        self._greeting.add_done_callback(self._note_greeted)

    def drop(self) -> None:
        """Close it at once."""
        if self._protocol is not None:
            self._protocol.drop()
        elif self._greeting is not None:
            self._greeting.cancel()

    async def _greet(self) -> None:
        self._protocol = await self._server.greet(self)

    def _note_greeted(self, _: "asyncio.Task[None]") -> None:
        if self._protocol is None:
            self.accepted.close()
            self._server.forget(self)


class _QuietServer(uvicorn.Server):
    """Leaves signals to the process that it is a part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing about signals."""
        yield
