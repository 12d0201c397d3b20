"""Clients of the page that open what they do not use: connections, handshakes, feeds."""

import datetime as dt
import socket
import ssl

import httpx
import pytest
from edgenewton.common.identity import Kind
from edgenewton.common.tls import TlsFiles
from served import Served

from coordinator.dashboard import feed
from coordinator.identity.authority import Authority
from coordinator.identity.server_tls import ServerTls, ServerTlsFiles

DAY = dt.timedelta(days=1)


def raw(url, sent=b"", source="127.0.0.1"):
    port = int(url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(source, 0))
    connection.sendall(sent)
    return connection


@pytest.fixture
def served():
    served = Served()
    yield served
    served.stop()


def test_300_half_open_requests_lock_nobody_out(served):
    held = [raw(served.url, b"GET /api/state HTTP/1.1\r\nHost: 127.0.0.1\r\n") for _ in range(300)]
    assert httpx.get(f"{served.url}/health", timeout=20).status_code == 200
    with raw(served.url, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "127.0.0.2") as other:
        assert other.recv(4096).startswith(b"HTTP/1.1 200")
    for connection in held:
        connection.close()


def test_300_handshakes_that_never_end_lock_nobody_out(tmp_path):
    authority = Authority.create(tmp_path / "ca")
    authority.issue(Kind.COORDINATOR, "hub", DAY, hosts=["127.0.0.1"])
    shown = TlsFiles.in_folder(authority.issue(Kind.DEVICE, "a", DAY))
    served = Served(ServerTls(ServerTlsFiles.parse(str(tmp_path / "ca"))).page_context())
    try:
        held = [raw(served.url, b"\x16\x03\x01" if place % 2 else b"") for place in range(300)]
        context = ssl.create_default_context(cafile=shown.ca)
        context.load_cert_chain(shown.certificate, shown.key)
        with httpx.Client(verify=context, timeout=20) as client:
            assert client.get(f"{served.url}/health").status_code == 200
        for connection in held:
            connection.close()
    finally:
        served.stop()


def test_one_client_has_not_all_feeds(served, monkeypatch):
    monkeypatch.setattr(feed, "MAX_VIEWERS_PER_CLIENT", 1)
    follow = b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with raw(served.url, follow) as one:
        assert one.recv(4096).startswith(b"HTTP/1.1 200")
        with raw(served.url, follow) as second:
            assert second.recv(4096).startswith(b"HTTP/1.1 503")
        with raw(served.url, follow, "127.0.0.2") as other:
            assert other.recv(4096).startswith(b"HTTP/1.1 200")
