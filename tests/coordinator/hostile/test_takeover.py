"""State takeover: a device that says to be further than its session knows gives its weights to nobody unasked."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from bare_client import Device, join_request, refused, wait_until_open
from edgenewton.v1 import exchange_pb2_grpc

from coordinator.serving.server import embedded_coordinator
from coordinator.session.members import Standing
from coordinator.session.settings import SessionSettings


@pytest.fixture
def coordinator():
    with embedded_coordinator() as embedded:
        yield embedded


@pytest.fixture
def stub(coordinator):
    with grpc.insecure_channel(coordinator.address) as channel:
        yield exchange_pb2_grpc.GradientExchangeStub(channel)


def test_a_device_that_says_to_be_further_makes_nobody_heal_and_is_refused(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=3, quorum=2))
    session = coordinator.directory.find("s").session
    honest = Device(stub, "a", weights_digest=b"fresh")
    wait_until_open(coordinator, "a")
    with ThreadPoolExecutor(1) as pool:
        claim = pool.submit(
            refused, lambda: stub.Join(join_request("evil", next_step=1_000, weights_digest=b"evil"), timeout=20)
        )
        other = Device(stub, "b", weights_digest=b"fresh")
        code, details = claim.result()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "device 'evil'" in details
    assert "step 1000" in details
    assert "--trust-state-of evil" in details
    assert session.step.number == 0
    assert session.members.standing(Standing.ACTIVE) == ["a", "b"]
    third = Device(stub, "c", weights_digest=b"fresh")
    for device in (honest, other, third):
        device.send_gradient(0, 1.0)
    for device in (honest, other, third):
        frame = next(device.stream)
        assert not frame.HasField("heal")
        assert frame.commit.devices == 3
