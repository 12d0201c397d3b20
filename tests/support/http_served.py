"""An HTTP server with a small application, in a thread; and raw connections to it."""

import asyncio
import contextlib
import re
import socket

from edgenewton.common.http_protocol import HttpLimits
from edgenewton.common.http_server import HttpServer
from edgenewton.common.loop_thread import LoopThread

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class HttpServed:
    """Answers "/" at once, "/slow" when `finish` is called, "/large" with 8 MB, and reads every body."""

    def __init__(self, tls=None, **limits) -> None:
        self.loop = LoopThread("http")
        self.finished = asyncio.Event()

        async def app(scope, receive, send) -> None:  # uvicorn tells applications by their functions
            await self._answer(scope, receive, send)

        self.server = HttpServer(app, "127.0.0.1", 0, purpose="a test", tls=tls, limits=HttpLimits(**limits), drain_s=1)
        self.loop.call(self.server.start(), 20)

    async def _answer(self, scope, receive, send) -> None:
        size = 0
        while (message := await receive())["type"] == "http.request":
            size += len(message["body"])
            if not message["more_body"]:
                break
        if scope["path"] == "/slow":
            await self.finished.wait()
        body = bytes(8 << 20) if scope["path"] == "/large" else str(size).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    def finish(self) -> None:
        self.loop.call_soon(self.finished.set)

    @property
    def places(self) -> int:
        """How many connections the server holds."""

        async def count() -> int:
            return len(self.server._places)

        return self.loop.call(count(), 20)

    def stop(self) -> None:
        self.finish()
        self.loop.call(self.server.stop(), 20)
        self.loop.stop()

    def connect(self, source="127.0.0.1", sent=b""):
        connection = socket.create_connection(("127.0.0.1", self.server.port), timeout=20, source_address=(source, 0))
        if sent:
            connection.sendall(sent)
        return connection

    def ask(self, source="127.0.0.1", request=GET):
        """Return the status of an answer."""
        with self.connect(source, request) as connection:
            return status(connection)


def status(connection):
    """Return the status of the answer on a connection, of which all is read; None if it is closed without one."""
    with contextlib.suppress(ConnectionError):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := connection.recv(1)):
                return int(head.split()[1]) if head else None
            head += byte
        length = re.search(rb"content-length: (\d+)", head.lower())
        left = int(length[1]) if length else 0
        while left and (part := connection.recv(left)):
            left -= len(part)
        return int(head.split()[1])
    return None


def is_closed(connection):
    """Wait until the server has closed a connection."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True
