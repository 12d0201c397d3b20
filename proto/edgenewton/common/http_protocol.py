"""uvicorn's HTTP/1.1 with limits on time and on the size of what stands before a body, neither of which uvicorn has."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from httptools import HttpParserError
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState


@dataclass(frozen=True)
class HttpLimits:
    """What one client may take of a server."""

    max_connections: int = 512
    """In all."""
    max_connections_per_client: int = 128
    max_head_bytes: int = 32 << 10
    """Request line and headers; and what is between two parts of a body, or behind it."""
    head_s: float = 10.0
    """Seconds for them to come, from the connection's beginning or from their first byte on; TLS's handshake has as
    many for itself."""
    body_s: float = 10.0
    """A body that brings less than `min_body_bytes` in so many seconds is given up."""
    min_body_bytes: int = 40 << 10
    idle_s: int = 5
    """Seconds between two requests on one connection."""
    stall_s: float = 30.0
    """A client that takes nothing of its answer for so many seconds loses it."""


class _Phase(Enum):
    """What is expected next of the client."""

    HEAD = auto()
    BODY = auto()
    NOTHING = auto()


class LimitedHttp(HttpToolsProtocol):
    """One connection; see `HttpLimits`."""

    def __init__(self, config: Config, state: ServerState, limits: HttpLimits, on_lost: Callable[[], None]) -> None:
        super().__init__(config, state, app_state={})
        self._limits = limits
        self._on_lost = on_lost
        self._phase = _Phase.HEAD
        self._head_bytes = self._body_bytes = self._bare_bytes = 0
        """The last ones are those since a part of a body came."""
        self._timer: asyncio.TimerHandle | None = None
        """Of the phase, if it is HEAD or BODY."""
        self._stall_timer: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for its client: no request is being answered."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body

    def drop(self) -> None:
        """Close it at once."""
        if self.transport is not None:
            self.transport.abort()

    # ------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Expect the first request."""
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn's is narrower than asyncio's
        self._timer = self.loop.call_later(self._limits.head_s, self._note_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give its place back."""
        self._cancel_timer()
        self.resume_writing()
        super().connection_lost(exc)
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request, or of several."""
        phase = self._phase
        self._bare_bytes += len(data)
        super().data_received(data)
        if self._phase is _Phase.NOTHING:
            self._cancel_timer()
            return
        if self._phase is _Phase.HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_head_bytes:
                self._refuse_head()
        else:
            self._body_bytes += len(data)
            if self._bare_bytes > self._limits.max_head_bytes:
                self._refuse_head()
        if self._phase is not phase or self._timer is None:
            self._expect_more()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, whether or not its client takes what it was sent."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    # ------------------------------------------------------------------ the parser

    def on_message_begin(self) -> None:
        """Note the beginning of a request."""
        super().on_message_begin()
        self._phase = _Phase.HEAD
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one behind the body is of no use to anybody."""
        if self._phase is _Phase.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Let the request be answered, if its head is small enough."""
        size = len(self.url) + sum([len(name) + len(value) for name, value in self.headers])
        if size > self._limits.max_head_bytes:
            self._refuse_head()
            raise HttpParserError("the head is too large")
        self._phase = _Phase.BODY
        self._body_bytes = self._bare_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._bare_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        self._phase = _Phase.NOTHING
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, unless something else was wrong before."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    # ------------------------------------------------------------------ time

    def _expect_more(self) -> None:
        self._cancel_timer()
        seconds = self._limits.head_s if self._phase is _Phase.HEAD else self._limits.body_s
        self._timer = self.loop.call_later(seconds, self._note_late)

    def _note_late(self) -> None:
        self._timer = None
        if self._phase is _Phase.BODY and (
            self._body_bytes >= self._limits.min_body_bytes or self.flow.read_paused  # it is we who are slow
        ):
            self._body_bytes = 0
            self._expect_more()
        else:
            self._refuse(b"408 Request Timeout", "the request did not come in time")

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        """Note that the client takes its answer more slowly than it is given."""
        super().pause_writing()
        self._watch_unsent()

    def resume_writing(self) -> None:
        """Note that the client has taken most of it."""
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _watch_unsent(self) -> None:
        self._unsent_bytes = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(self._limits.stall_s, self._note_stalled)

    def _note_stalled(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent_bytes:
            self._watch_unsent()
        else:
            self.transport.abort()

    # ------------------------------------------------------------------ refusals

    def _refuse_head(self) -> None:
        text = f"request line and headers have more than {self._limits.max_head_bytes} bytes"
        self._refuse(b"431 Request Header Fields Too Large", text)

    def _refuse(self, status: bytes, text: str) -> None:
        """Answer with a sentence, unless another answer has begun, and close."""
        if self.transport.is_closing():
            return
        is_free = self.cycle is None or self.cycle.response_complete or not self.cycle.response_started
        if is_free:
            self.transport.write(plain_answer(status, text))
        self.transport.close()


def plain_answer(status: bytes, text: str) -> bytes:
    """Return a whole answer, after which the connection is closed."""
    body = f'{{"error": "{text}"}}'.encode()
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    return head % (status, len(body)) + body
