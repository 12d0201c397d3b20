"""Clients of the page and the recognition server that misbehave, over raw sockets.

They come from loopback addresses of their own, as clients on other machines do.
"""

import json
import random
import socket
from collections.abc import Callable

HOLD_S = 8.0


def _open(address: str, draw: random.Random) -> socket.socket:
    host, port = address.removeprefix("http://").rstrip("/").rsplit(":", 1)
    source = (f"127.0.0.{draw.randrange(2, 250)}", 0)
    return socket.create_connection((host, int(port)), timeout=10, source_address=source)


def misbehave(address: str, draw: random.Random, wait: Callable[[float], None]) -> None:
    """Do one deed to an HTTP server.

    Args:
        address: of the server, host:port.
        draw: says which.
        wait: waits so many seconds.

    Raises:
        OSError: the server closed the connection.

    """
    deed = draw.choice([half_open, endless_headers, garbage, unread, large_body, flood])
    deed(address, draw, wait)


def half_open(address: str, draw: random.Random, wait: Callable[[float], None]) -> None:
    """Hold twenty connections with half a request, or with nothing."""
    held = [_open(address, draw) for _ in range(20)]
    try:
        for connection in held:
            connection.sendall(draw.choice([b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01"]))
        wait(HOLD_S)
    finally:
        for connection in held:
            connection.close()


def endless_headers(address: str, draw: random.Random, _wait: Callable[[float], None]) -> None:
    """Send up to 4 MB of headers."""
    with _open(address, draw) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        for number in range(400):
            connection.sendall(b"x-%d: " % number + b"y" * 10_000 + b"\r\n")


def garbage(address: str, draw: random.Random, _wait: Callable[[float], None]) -> None:
    """Send bytes that are no request, and read the answer."""
    with _open(address, draw) as connection:
        connection.sendall(draw.randbytes(draw.randrange(1, 50_000)))
        connection.recv(4096)


def unread(address: str, draw: random.Random, wait: Callable[[float], None]) -> None:
    """Ask a hundred times on one connection and read no answer."""
    with _open(address, draw) as connection:
        connection.settimeout(2)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100)
        wait(HOLD_S / 2)


def large_body(address: str, draw: random.Random, _wait: Callable[[float], None]) -> None:
    """Announce a body of a terabyte, or a length of 5,000 digits."""
    length = draw.choice([b"1000000000000", b"9" * 5000])
    with _open(address, draw) as connection:
        connection.sendall(b"POST /recognize HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n")
        for _ in range(50):
            connection.sendall(bytes(100_000))
        connection.recv(4096)


def flood(address: str, draw: random.Random, _wait: Callable[[float], None]) -> None:
    """Open and close a hundred connections."""
    for _ in range(100):
        _open(address, draw).close()


def swell(address: str, draw: random.Random) -> None:
    """Ask a recognition server for outputs named many times, numbers of 400 digits, and lists in lists.

    Raises:
        OSError: the server closed the connection.

    """
    raw = {"name": "raw", "datatype": "UINT8", "shape": [64, 8, 8], "data": [0] * 4096}
    body = draw.choice(
        [
            json.dumps({"inputs": [raw], "outputs": [{"name": "probabilities"}] * 100_000}),
            json.dumps({"inputs": [raw], "parameters": {"timeout": 10**400}}),
            json.dumps({"inputs": [{}] * 300_000}),
            "[" * 100_000,
            json.dumps({"inputs": [{**raw, "shape": [10**400]}]}),
            json.dumps({"inputs": [{**raw, "name": "n" * 1_000_000}]}),
        ]
    ).encode()
    head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    with _open(address, draw) as connection:
        connection.sendall(head.encode() + body)
        connection.recv(4096)
