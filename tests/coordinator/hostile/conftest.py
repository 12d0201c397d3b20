"""What the suite of hostile peers has in common: what attacks `target` runs in plaintext and with mutual TLS."""

import grpc
import pytest
from edgenewton.v1 import exchange_pb2_grpc
from raw_client import Target

from coordinator.serving.server import embedded_coordinator


@pytest.fixture(scope="module", params=["plaintext", "mutual TLS"])
def is_secured(request):
    return request.param == "mutual TLS"


@pytest.fixture(scope="module")
def target(is_secured, tmp_path_factory):
    """Return a coordinator to attack; each test opens sessions of its own on it."""
    with Target(tmp_path_factory.mktemp("target"), is_secured=is_secured) as target:
        yield target


@pytest.fixture
def coordinator():
    with embedded_coordinator() as embedded:
        yield embedded


@pytest.fixture
def stub(coordinator):
    with grpc.insecure_channel(coordinator.address) as channel:
        yield exchange_pb2_grpc.GradientExchangeStub(channel)
