"""Hostage steps: who begins every step and ends none is waited for less and less."""

import grpc
import pytest
from bare_client import Device, gradient_frame
from edgenewton.v1 import exchange_pb2_grpc

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings


@pytest.fixture
def coordinator():
    with embedded_coordinator() as embedded:
        yield embedded


@pytest.fixture
def stub(coordinator):
    with grpc.insecure_channel(coordinator.address) as channel:
        yield exchange_pb2_grpc.GradientExchangeStub(channel)


def begin_only(step: int):
    """Return a contribution without its end."""
    frame = gradient_frame(step, 1.0)
    frame.ClearField("contribution")
    return frame


def test_a_device_that_ends_no_step_holds_few_of_them_up(coordinator, stub):
    deadline_s, steps = 0.3, 40
    coordinator.create_session("s", SessionSettings(devices=3, quorum=2, step_deadline_s=deadline_s))
    hostage, a, b = (Device(stub, name) for name in ("hostage", "a", "b"))
    for step in range(steps):
        hostage.send(begin_only(step))
        for device in (a, b):
            device.send_gradient(step, 1.0)
        for device in (a, b, hostage):
            while not (frame := next(device.stream)).HasField("commit"):
                pass
            assert frame.commit.devices == 2
    room = coordinator.directory.find("s")
    late = [seconds for _, seconds in room.chronicle.statistics.curves.seconds if seconds >= deadline_s]
    assert len(late) <= 3
