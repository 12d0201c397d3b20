"""A client that speaks HTTP/2 by hand: it sends gRPC requests but for their ends (RFC 9113, sections 4.1 and 6)."""

import socket
import struct

_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_ACK, _END_HEADERS = 1, 4
_INITIAL_WINDOW = 4
_LARGEST_FRAME = 16_384


def half_send(address: str, method: str, calls: int, size: int) -> int:
    """Begin calls on one connection, and send each's request as far as the server lets it come, but its last byte.

    Returns:
        How many bytes the server has let come, once it lets no more come for a second.

    """
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=1.0) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0))
        sender = _Sender(connection)
        for call in range(calls):
            connection.sendall(_frame(_HEADERS, _END_HEADERS, 2 * call + 1, _headers(method)))
            sender.left[2 * call + 1] = b"\0" + struct.pack(">I", size) + bytes(size - 1)
        while True:
            sender.send()
            try:
                sender.receive()
            except TimeoutError:
                return sender.sent


class _Sender:
    def __init__(self, connection: socket.socket) -> None:
        self.left: dict[int, bytes] = {}
        self.sent = 0
        self._connection = connection
        self._initial = self._window = 65_535
        self._granted: dict[int, int] = {}
        self._unread = b""

    def send(self) -> None:
        for stream, content in self.left.items():
            while content and (size := min(_LARGEST_FRAME, len(content), self._window, self._of(stream))) > 0:
                self._connection.sendall(_frame(_DATA, 0, stream, content[:size]))
                content = content[size:]
                self._window -= size
                self._granted[stream] = self._granted.get(stream, 0) - size
                self.sent += size
            self.left[stream] = content

    def receive(self) -> None:
        self._unread += self._connection.recv(1 << 16)
        while len(self._unread) >= 9 and len(self._unread) >= (end := 9 + int.from_bytes(self._unread[:3], "big")):
            kind, flags = self._unread[3:5]
            stream, content = int.from_bytes(self._unread[5:9], "big"), self._unread[9:end]
            self._unread = self._unread[end:]
            self._take(kind, flags, stream, content)

    def _take(self, kind: int, flags: int, stream: int, content: bytes) -> None:
        if kind == _WINDOW_UPDATE and stream:
            self._granted[stream] = self._granted.get(stream, 0) + int.from_bytes(content, "big")
        elif kind == _WINDOW_UPDATE:
            self._window += int.from_bytes(content, "big")
        elif kind == _SETTINGS and not flags & _ACK:
            for name, value in struct.iter_unpack(">HI", content):
                self._initial = value if name == _INITIAL_WINDOW else self._initial
            self._connection.sendall(_frame(_SETTINGS, _ACK, 0))
        elif kind == _PING and not flags & _ACK:
            self._connection.sendall(_frame(_PING, _ACK, 0, content))

    def _of(self, stream: int) -> int:
        return self._initial + self._granted.get(stream, 0)


def _frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + content


def _headers(method: str) -> bytes:
    """Return a call's headers, none of them compressed (RFC 7541, 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "x",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    texts = [text.encode() for field in fields.items() for text in field]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in pairs)
