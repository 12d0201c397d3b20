"""A service's methods, read from its description."""

from types import SimpleNamespace

import pytest
from edgenewton.v1 import control_pb2, exchange_pb2
from edgenewton.v1 import exchange_pb2 as pb

from coordinator.serving.methods import generic_handler

EXCHANGE = exchange_pb2.DESCRIPTOR.services_by_name["GradientExchange"]
NAMES = ("Join", "Exchange", "UploadSnapshot", "DownloadSnapshot", "Leave", "Watch")


def handlers(as_bytes=()):
    servicer = SimpleNamespace(**{name: f"the method {name}" for name in NAMES})
    generic = generic_handler(EXCHANGE, servicer, as_bytes)
    return {
        name: generic.service(SimpleNamespace(method=f"/{EXCHANGE.full_name}/{name}", invocation_metadata=()))
        for name in NAMES
    }


def test_every_method_is_offered_with_its_streams():
    streams = {name: (h.request_streaming, h.response_streaming) for name, h in handlers().items()}
    assert streams == {
        "Join": (False, False),
        "Exchange": (True, True),
        "UploadSnapshot": (True, False),
        "DownloadSnapshot": (False, True),
        "Leave": (False, False),
        "Watch": (False, True),
    }
    assert handlers()["Exchange"].stream_stream == "the method Exchange"


def test_messages_are_decoded_but_for_the_methods_that_take_bytes():
    of = handlers(as_bytes=("Exchange",))
    assert of["Exchange"].request_deserializer is None
    assert of["Exchange"].response_serializer is None
    request = pb.JoinRequest(session="s", device="a")
    assert of["Join"].request_deserializer(request.SerializeToString()) == request
    assert (
        of["Watch"].response_serializer(pb.SessionEvent(session="s"))
        == pb.SessionEvent(session="s").SerializeToString()
    )


def test_a_method_that_the_service_has_not_is_named():
    with pytest.raises(ValueError, match="edgenewton.v1.Control has no method Exchange"):
        generic_handler(control_pb2.DESCRIPTOR.services_by_name["Control"], object(), as_bytes=("Exchange",))
