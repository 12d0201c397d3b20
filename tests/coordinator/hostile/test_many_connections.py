"""Strangers who hold as many connections as they get: bounded, soon ended, and whoever trains goes on."""

import contextlib
import resource
import select
import socket
import time

import pytest
from bare_client import Device
from edgenewton.v1 import exchange_pb2_grpc
from raw_client import Target, assert_trains_on
from test_raw_sockets import PREFACE, SETTINGS, connect, send

from coordinator.identity.limits import IdentityLimits
from coordinator.serving.connections import OTHER_FILES, most_connections

CONNECTIONS = 24
LIMITS = IdentityLimits(connections=CONNECTIONS, handshake_s=1.0, idle_s=1.0)
LIMIT_S = 30.0
GREETINGS = {"silent": b"", "half a greeting": PREFACE, "no calls": PREFACE + SETTINGS}


@pytest.fixture(scope="module")
def target(is_secured, tmp_path_factory):
    with Target(tmp_path_factory.mktemp("target"), is_secured=is_secured, limits=LIMITS) as target:
        yield target


def closed(held: list[socket.socket]) -> list[socket.socket]:
    """Return the connections that were hung up on, as far as one sees at once."""
    found = []
    readable, _, _ = select.select(held, [], [], 0)
    for connection in readable:
        try:
            while connection.recv(1 << 16):
                pass
            found.append(connection)
        except BlockingIOError:
            pass
        except OSError:
            found.append(connection)
    return found


@pytest.fixture
def training(target):
    """Return two devices of a session that have committed step 0, to be told to go on."""
    session = target.session(devices=2, quorum=2)
    devices = [target.device(name, session) for name in "ab"]
    assert_trains_on(*devices)
    yield devices
    for device in devices:
        device.end()


def opened(target: Target, sent: bytes) -> list[socket.socket]:
    """Return twice as many connections as are allowed, on which something was sent, without those that were refused."""
    held = []
    for _ in range(2 * CONNECTIONS):
        with contextlib.suppress(OSError):
            held.append(connect(target))
            send(held[-1], sent)
            held[-1].setblocking(False)
    return held


def wait_until_left(held: list[socket.socket], most: int) -> list[socket.socket]:
    """Return the connections that were not hung up on, once they are so few."""
    deadline = time.monotonic() + LIMIT_S
    while len(held) > most and time.monotonic() < deadline:
        gone = closed(held)
        held = [connection for connection in held if connection not in gone]
        time.sleep(0.02)
    assert len(held) <= most
    return held


@pytest.mark.parametrize("sent", GREETINGS.values(), ids=GREETINGS)
def test_connections_that_nobody_uses_end_and_make_room(target, training, sent):
    held = opened(target, sent)
    assert_trains_on(*training, step=1)
    wait_until_left(held, 0)
    assert_trains_on(*training, step=2)
    late = target.session(devices=1, quorum=1)
    with target.new_channel("late") as channel:
        device = Device(exchange_pb2_grpc.GradientExchangeStub(channel), "late", session=late)
        assert_trains_on(device)
        device.end()
    for connection in held:
        connection.close()


def test_so_many_connections_and_no_more_are_held_while_members_go_on(is_secured, tmp_path):
    patient = LIMITS.model_copy(update={"handshake_s": 600.0, "idle_s": 600.0})
    with Target(tmp_path, is_secured=is_secured, limits=patient) as target:
        session = target.session(devices=2, quorum=2)
        devices = [target.device(name, session) for name in "ab"]
        assert_trains_on(*devices)
        held = opened(target, PREFACE)
        left = wait_until_left(held, CONNECTIONS - len(devices))
        for step in (1, 2):
            assert_trains_on(*devices, step=step)
        assert left or is_secured  # what is no TLS ends at once
        for connection in held:
            connection.close()
        for device in devices:
            device.end()


def test_files_are_left_for_what_is_no_connection(monkeypatch, caplog):
    told = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: told.append(limits))
    for soft, hard, most, raised in (
        (1_024, 1 << 20, 4_096, [(4_096 + OTHER_FILES, 1 << 20)]),
        (1_024, resource.RLIM_INFINITY, 4_096, [(4_096 + OTHER_FILES, resource.RLIM_INFINITY)]),
        (1 << 20, 1 << 20, 4_096, []),
        (1_024, 1_024, 1_024 - OTHER_FILES, [(1_024, 1_024)]),
        (200, 200, 100, [(200, 200)]),
    ):
        told.clear()
        caplog.clear()
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=(soft, hard): limits)
        assert most_connections(4_096) == most
        assert told == raised
        assert bool(caplog.records) == (most < 4_096)
