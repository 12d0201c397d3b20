"""What comes over a bare connection: garbage, other protocols, half of something, silence. Nobody else notices."""

import contextlib
import socket
import ssl
import struct

import grpc
import pytest
from bare_client import Device, join_request, refused
from edgenewton.v1 import exchange_pb2_grpc
from raw_client import Target, assert_trains_on

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00" + bytes(4)
LIMIT_S = 20.0


def http2_frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content


SENT = {
    "garbage": bytes(range(256)) * 40,
    "HTTP/1": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "HTTP/1 with an endless header": b"GET / HTTP/1.1\r\nX: " + b"y" * 300_000,
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(508),
    "a frame larger than HTTP/2 has": PREFACE + SETTINGS + b"\xff\xff\xff\x00\x00" + bytes(4),
    "data of a call that does not exist": PREFACE + SETTINGS + http2_frame(0, 0, 7, b"x" * 100),
    "headers that cannot be decoded": PREFACE + SETTINGS + http2_frame(1, 4, 1, b"\xff" * 100),
    "headers without an end": PREFACE + SETTINGS + http2_frame(1, 0, 1, b"") + http2_frame(9, 0, 1, b"") * 2_000,
    "streams that are reset at once": PREFACE
    + SETTINGS
    + b"".join(http2_frame(1, 4, 2 * n + 1, b"") + http2_frame(3, 0, 2 * n + 1, bytes(4)) for n in range(2_000)),
    "pings without end": PREFACE + SETTINGS + http2_frame(6, 0, 0, bytes(8)) * 5_000,
}


def connect(target: Target) -> socket.socket:
    host, port = target.coordinator.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=LIMIT_S)


def send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # it was hung up meanwhile, as it may be
        connection.sendall(data)


@pytest.fixture
def training(target):
    """Return two devices of a session that have committed step 0, to be told to go on."""
    session = target.session(devices=2, quorum=2)
    devices = [target.device(name, session) for name in "ab"]
    assert_trains_on(*devices)
    yield devices
    for device in devices:
        device.end()


@pytest.mark.parametrize("name", SENT)
def test_bytes_that_are_no_call_end_a_connection_and_nothing_else(target, training, name):
    with connect(target) as connection:
        send(connection, SENT[name])
        assert_trains_on(*training, step=1)
        connection.shutdown(socket.SHUT_WR)
        answers = b""
        try:
            while received := connection.recv(1 << 16):
                answers += received
        except ConnectionError:
            pass  # it hung up; what it must not do is wait: a timeout is an error of another kind
        assert b"Traceback" not in answers
    assert_trains_on(*training, step=2)


def test_half_open_connections_keep_nobody_out(target, training):
    parts = (b"", b"\x16", PREFACE[:9], PREFACE, PREFACE + SETTINGS, PREFACE + SETTINGS + b"\x00\x00\x40\x01\x04")
    held = [connect(target) for _ in range(120)]
    for number, connection in enumerate(held):
        send(connection, parts[number % len(parts)])
    assert_trains_on(*training, step=1)
    session = target.session(devices=1, quorum=1)
    with target.new_channel("late") as channel:  # over a connection that comes after them
        late = Device(exchange_pb2_grpc.GradientExchangeStub(channel), "late", session=session)
        assert_trains_on(late)
        late.end()
    for connection in held:
        connection.close()
    assert_trains_on(*training, step=2)


def test_connections_that_are_cut_in_the_midst_keep_nobody_out(target, training):
    for _ in range(60):
        connection = connect(target)
        send(connection, PREFACE + SETTINGS)
        # No goodbye: the connection is reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    assert_trains_on(*training, step=1)


def test_who_speaks_the_other_way_is_refused_at_the_handshake(target, training, is_secured):
    """TLS on the plaintext port, plaintext on the TLS port."""
    if is_secured:
        with grpc.insecure_channel(target.coordinator.address) as channel:
            stub = exchange_pb2_grpc.GradientExchangeStub(channel)
            code, _ = refused(lambda: stub.Join(join_request("m"), timeout=LIMIT_S))
        assert code is grpc.StatusCode.UNAVAILABLE
    else:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with connect(target) as connection, pytest.raises((ssl.SSLError, OSError)) as caught:
            context.wrap_socket(connection)
        assert not isinstance(caught.value, TimeoutError)
    assert_trains_on(*training, step=1)


@pytest.mark.parametrize("is_secured", ["mutual TLS"], indirect=True)
def test_who_shows_no_certificate_gets_no_answer(target, training):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with connect(target) as connection, pytest.raises((ssl.SSLError, ConnectionError)):
        read_all(connection, context)
    assert_trains_on(*training, step=1)


def read_all(connection: socket.socket, context: ssl.SSLContext) -> None:
    """Speak TLS and HTTP/2, and read until the end: with TLS 1.3 a client is told there whether it is let in."""
    with context.wrap_socket(connection) as secured:
        secured.sendall(PREFACE + SETTINGS)
        while received := secured.recv(1 << 16):
            assert not received, "the coordinator answers"
    raise ConnectionError("it was closed")
