"""Model squatting: who brings another model first makes no honest device be refused."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from bare_client import Device, join_request
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1 import exchange_pb2_grpc
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.serving.server import embedded_coordinator
from coordinator.session.decisions import Phase
from coordinator.session.settings import SessionSettings

OTHER = TensorSpec("squat.weight", (5, 5))


@pytest.fixture
def coordinator():
    with embedded_coordinator() as embedded:
        yield embedded


@pytest.fixture
def stub(coordinator):
    with grpc.insecure_channel(coordinator.address) as channel:
        yield exchange_pb2_grpc.GradientExchangeStub(channel)


def trains(*devices: Device) -> bool:
    for device in devices:
        device.send_gradient(0, 2.0)
    return all(next(f.commit for f in d.stream if f.HasField("commit")).devices == len(devices) for d in devices)


def test_a_model_goes_with_the_last_device_that_brought_it(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=2))
    squatter = stub.Join(join_request("squatter", OTHER), timeout=5)
    stub.Leave(pb.LeaveRequest(session="s", device="squatter", token=squatter.token), timeout=5)
    assert trains(Device(stub, "a"), Device(stub, "b"))


def test_an_outdated_device_that_stays_gives_way_to_the_majority(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=4, quorum=3, join_deadline_s=1))
    outdated = Device(stub, "outdated", OTHER)
    with ThreadPoolExecutor(3) as pool:
        honest = list(pool.map(lambda name: Device(stub, name), "abc"))
    error = outdated.error()
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "device 'outdated'" in error.details()
    assert "squat.weight" in error.details()
    assert trains(*honest)
    assert coordinator.directory.find("s").session.phase is Phase.TRAINING
