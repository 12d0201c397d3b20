"""Raw connections of clients that do what none should: a real server, in this process."""

import contextlib
import socket
import time

import pytest
from edgenewton.common.clients import client_of, client_of_peer
from edgenewton.common.connection_limits import ConnectionLimits
from http_served import GET, HttpServed, is_closed, status

OTHER = "127.0.0.2"


@contextlib.contextmanager
def served(**limits):
    served = HttpServed(**limits)
    try:
        yield served
    finally:
        served.stop()


class Held:
    def __init__(self, *, is_waiting=True):
        self.is_waiting = is_waiting
        self.is_dropped = False

    def drop(self):
        self.is_dropped = True


def test_who_waits_longest_makes_room_within_its_client():
    limits = ConnectionLimits(10, 2)
    first, second, third, other = Held(is_waiting=False), Held(), Held(), Held()
    assert all(limits.admit(held, "a") for held in (first, second))
    assert limits.admit(other, "b")
    assert limits.admit(third, "a")
    assert [held.is_dropped for held in (first, second, third, other)] == [False, True, False, False]
    third.is_waiting = False
    assert not limits.admit(Held(), "a")
    limits.remove(first, "a")
    assert limits.admit(Held(), "a")
    assert len(limits) == 3


def test_where_the_server_is_full_the_client_with_most_makes_room():
    limits = ConnectionLimits(4, 3)
    many, one = [Held() for _ in range(3)], Held()
    assert all(limits.admit(held, "a") for held in many)
    assert limits.admit(one, "b")
    assert limits.admit(Held(), "c")
    assert ([held.is_dropped for held in many], one.is_dropped) == ([True, False, False], False)
    for held in (*many, one):
        held.is_waiting = False
    assert limits.admit(Held(), "d")  # c's makes room
    assert len(limits) == 4


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:10.0.0.1:4711", "10.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:4711", "2001:db8::/64"),
        ("ipv6:[2001:db8:0:0:ffff::2]:1", "2001:db8::/64"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:1", "10.0.0.1"),
        ("unix:", "unix:"),
    ],
)
def test_a_client_is_its_address_or_its_network(peer, client):
    assert client_of_peer(peer) == client


def test_a_client_of_a_link_and_of_no_address():
    assert client_of("fe80::1%eth0") == "fe80::/64"
    assert client_of("somebody") == "somebody"


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"]
)
def test_300_half_open_connections_lock_nobody_out(sent):
    with served(max_connections=64, max_connections_per_client=32, head_s=60, body_s=60) as server:
        held = [server.connect(sent=sent) for _ in range(300)]
        assert server.ask(OTHER) == 200
        assert server.ask() == 200
        assert server.places <= 33
        for connection in held:
            connection.close()


def test_what_is_being_answered_keeps_its_place():
    slow = GET.replace(b"/ ", b"/slow ")
    with served(max_connections=4, max_connections_per_client=2) as server:
        answered = [server.connect(sent=slow) for _ in range(2)]
        while server.places < 2:
            time.sleep(0.01)
        with server.connect() as refused:
            assert refused.recv(4096).startswith(b"HTTP/1.1 503")
        assert server.ask(OTHER) == 200
        server.finish()
        assert [status(connection) for connection in answered] == [200, 200]


@pytest.mark.parametrize("behind", [b"0\r\n" + b"a: b\r\n" * 2000, b"0\r\na: " + b"b" * 9000, b"1;a=" + b"b" * 9000])
def test_what_is_behind_a_body_or_between_its_parts_has_a_limit(behind):
    """Headers behind a body were kept for ever: 20 MB of them took 400 MB."""
    with served(max_head_bytes=4096) as server:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
        with server.connect(sent=head) as connection:
            time.sleep(0.1)  # what comes with the body in one piece is not counted
            connection.sendall(behind)
            assert is_closed(connection)
        assert server.ask() == 200


def test_a_body_in_parts_may_be_larger_than_a_head_and_end_with_headers():
    with served(max_head_bytes=4096) as server:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        with server.connect(sent=head + (b"400\r\n" + bytes(1024) + b"\r\n") * 100) as connection:
            connection.sendall(b"0\r\na: b\r\n\r\n")
            assert status(connection) == 200
            connection.sendall(GET)
            assert status(connection) == 200


@pytest.mark.parametrize("is_endless", [True, False])
def test_a_head_has_a_limit(is_endless):
    with served(max_head_bytes=4096) as server:
        headers = b"".join(b"X-%d: %s\r\n" % (number, bytes([97]) * 100) for number in range(100))
        head = b"GET / HTTP/1.1\r\nHost: x\r\n" + headers
        with server.connect(sent=head if is_endless else head + b"\r\n") as connection:
            assert connection.recv(4096).startswith(b"HTTP/1.1 431")
            assert is_closed(connection)
        one_header = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + bytes([97]) * 8000
        with server.connect(sent=one_header) as connection:
            assert status(connection) == 431
        assert server.ask(request=b"GET /" + bytes([97]) * 8000 + b" HTTP/1.1\r\n\r\n") == 431
        assert server.ask(request=GET[:-2] + b"X: " + bytes([97]) * 3000 + b"\r\n\r\n") == 200


def test_a_head_that_is_sent_while_another_request_is_answered_has_one_too():
    with served(max_head_bytes=4096) as server, server.connect(sent=GET.replace(b"/ ", b"/slow ")) as connection:
        with contextlib.suppress(ConnectionError):
            for _ in range(2000):
                connection.sendall(b"GET / HTTP/1.1\r\nX: " + bytes([97]) * 8000)
        assert is_closed(connection)


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", GET + b"GET ", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n12"]
)
def test_a_request_has_a_time_limit(sent):
    with served(head_s=0.2, body_s=0.2) as server, server.connect(sent=sent) as connection:
        received = b""
        while part := connection.recv(4096):
            received += part
        assert b"HTTP/1.1 408 Request Timeout" in received
        assert received.startswith(b"HTTP/1.1 200") == sent.startswith(GET)


def test_bytes_that_trickle_do_not_put_it_off():
    with served(head_s=0.3, body_s=0.3) as server:
        for begin in (b"GET / HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n"):
            with server.connect(sent=begin) as connection:
                connection.settimeout(0.02)
                received = b""
                for _ in range(1000):
                    with contextlib.suppress(TimeoutError):
                        received = connection.recv(4096)
                        break
                    connection.sendall(b"a")
                assert received.startswith(b"HTTP/1.1 408")


def test_a_body_that_comes_fast_enough_may_take_longer():
    begin = b"POST / HTTP/1.1\r\nContent-Length: 12\r\nConnection: close\r\n\r\n"
    with served(body_s=0.2, min_body_bytes=2) as server, server.connect(sent=begin) as connection:
        for _ in range(6):
            time.sleep(0.1)
            connection.sendall(b"ab")
        received = b"".join(iter(lambda: connection.recv(4096), b""))
        assert (received[:15], received[-2:]) == (b"HTTP/1.1 200 OK", b"12")


def _comes_to(places, server):
    deadline = time.monotonic() + 20
    while server.places != places and time.monotonic() < deadline:
        time.sleep(0.02)
    return server.places == places


def test_a_client_that_does_not_take_its_answer_loses_it():
    with served(stall_s=0.2) as server, server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(GET.replace(b"/ ", b"/large "))
        assert _comes_to(1, server)
        assert _comes_to(0, server)
        assert server.ask() == 200


def test_a_length_of_5000_digits_is_a_bad_request():
    with served() as server:
        assert server.ask(request=b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n") == 400
        assert server.ask(request=b"hello\r\n\r\n") == 400
        assert server.ask() == 200
