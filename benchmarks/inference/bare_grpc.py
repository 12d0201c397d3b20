"""A gRPC client that sends one ready request again and again: its HTTP/2 frames are made beforehand.

A general client costs as much processor time as the server that it measures; on a machine with two cores the result
would be that of the client. HTTP/2 is RFC 9113, its header compression RFC 7541, gRPC's use of it
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

import asyncio
import struct

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GO_AWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WHOLE_WINDOW = (1 << 31) - 1
_FIRST_WINDOW = 65_535
_WINDOW_SETTING = 4


class BareGrpc(asyncio.Protocol):
    """One connection, on which one request at a time is under way.

    Args:
        method: path of the method, "/package.Service/Method".
        authority: host:port.
        request: the serialised message.

    """

    def __init__(self, method: str, authority: str, request: bytes) -> None:
        self._headers = b"\x83\x86" + b"".join(  # POST, http
            (
                b"\x04" + _text(method),
                b"\x01" + _text(authority),
                b"\x0f\x10" + _text("application/grpc"),
                b"\x00" + _text("te") + _text("trailers"),
            )
        )
        self._body = struct.pack(">BI", 0, len(request)) + request
        self._next_stream = 1
        self._window = _FIRST_WINDOW
        self._received = b""
        self._has_answer = False
        self._answer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello, and that answers may come without waiting for room."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = struct.pack(">HI", _WINDOW_SETTING, _WHOLE_WINDOW)
        room = struct.pack(">I", _WHOLE_WINDOW - _FIRST_WINDOW)
        transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, room))

    async def ask(self) -> None:
        """Send the request and wait for the answer.

        Raises:
            ConnectionError: the server refused it, closed the connection, or takes no more.

        """
        if len(self._body) > self._window:
            raise ConnectionError("the server makes no room for requests")
        self._window -= len(self._body)
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self._has_answer = False
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(
            _frame(_HEADERS, _END_HEADERS, stream, self._headers) + _frame(_DATA, _END_STREAM, stream, self._body)
        )
        await self._answer

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Let who waits know."""
        self._end(ConnectionError(f"the server closed the connection: {error}"))

    def data_received(self, data: bytes) -> None:
        """Take frames."""
        data = self._received + data
        place = 0
        while place + 9 <= len(data):
            end = place + 9 + int.from_bytes(data[place : place + 3])
            if end > len(data):
                break
            self._take(data[place + 3], data[place + 4], data[place + 9 : end])
            place = end
        self._received = data[place:]

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _DATA:
            self._has_answer |= len(payload) > 5
        elif kind == _WINDOW_UPDATE:
            # Those of single streams are far larger than a request; counting them too errs by little.
            self._window = min(self._window + int.from_bytes(payload), _WHOLE_WINDOW)
        elif kind in (_SETTINGS, _PING) and not flags & _ACK:
            self._transport.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind in (_RESET, _GO_AWAY):
            self._end(ConnectionError(f"the server ended the call: {payload[-40:]!r}"))
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            # A refusal has trailers alone.
            self._end(None if self._has_answer else ConnectionError(f"the server answered nothing: {payload!r}"))

    def _end(self, error: ConnectionError | None) -> None:
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)


def _text(text: str) -> bytes:
    assert len(text) < 127  # a length in one byte, without Huffman's code
    return bytes([len(text)]) + text.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload
