"""A service's methods, read from its description."""

import asyncio
import contextlib
import threading
from types import SimpleNamespace

import pytest
from edgenewton.v1 import control_pb2, exchange_pb2
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.limits import LimitError, Limits

from coordinator.identity.limits import IdentityLimits
from coordinator.serving.intake import MAX_WAITING, SMALL_BYTES, Intake
from coordinator.serving.methods import generic_handler
from coordinator.session.refusal import RefusedError, Status

EXCHANGE = exchange_pb2.DESCRIPTOR.services_by_name["GradientExchange"]
NAMES = ("Join", "Exchange", "UploadSnapshot", "DownloadSnapshot", "Leave", "Watch")


class Servicer:
    """Notes what its methods are given."""

    def __init__(self) -> None:
        self.given: list = []

    async def Join(self, request, context):  # noqa: N802
        self.given.append(request)
        return pb.JoinReply(token="t")

    async def UploadSnapshot(self, requests, context):  # noqa: N802
        self.given += [request async for request in requests]
        return pb.SnapshotReceipt(size=7)

    async def Watch(self, request, context):  # noqa: N802
        self.given.append(request)
        for number in range(3):
            yield pb.SessionEvent(time_s=number)

    Exchange = DownloadSnapshot = Leave = None


class Context:
    """Notes what is written to a caller, who may read nothing."""

    def __init__(self, *, is_read: bool = True) -> None:
        self.written: list[bytes] = []
        self._is_read = is_read

    def peer(self) -> str:
        return "ipv4:10.0.0.1:1234"

    async def write(self, data: bytes) -> None:
        if not self._is_read:
            await asyncio.Event().wait()
        self.written.append(data)


async def refuse(context, error, session="", device=""):
    raise RefusedError(error.status, f"{error.reason} ({session!r}, {device!r})")


def handlers(servicer, intake=None, as_bytes=("Exchange",)):
    generic = generic_handler(EXCHANGE, servicer, intake or Intake(IdentityLimits()), refuse, as_bytes)
    return {
        name: generic.service(SimpleNamespace(method=f"/{EXCHANGE.full_name}/{name}", invocation_metadata=()))
        for name in NAMES
    }


async def sent(*messages: bytes):
    for message in messages:
        yield message


def test_every_method_takes_a_stream_and_gives_one_only_if_it_has_several_answers():
    streams = {name: (h.request_streaming, h.response_streaming) for name, h in handlers(Servicer()).items()}
    assert streams == {
        "Join": (True, False),
        "Exchange": (True, True),
        "UploadSnapshot": (True, False),
        "DownloadSnapshot": (True, True),
        "Leave": (True, False),
        "Watch": (True, True),
    }


def test_messages_are_decoded_but_for_the_methods_that_take_bytes():
    servicer = Servicer()
    of = handlers(servicer)
    assert all(handler.request_deserializer is None for handler in of.values())
    assert of["Exchange"].stream_stream is servicer.Exchange

    async def call() -> None:
        small = pb.JoinRequest(session="s", device="a")
        large = pb.JoinRequest(session="s", options={str(i): "x" * 16_000 for i in range(SMALL_BYTES // 16_000 + 1)})
        for request in (small, large):  # of which one is read in a thread
            answer = await of["Join"].stream_unary(sent(request.SerializeToString()), Context())
            assert pb.JoinReply.FromString(answer) == pb.JoinReply(token="t")
            assert servicer.given.pop() == request
        chunks = [pb.SnapshotChunk(data=b"x" * size) for size in (1, 100_000, 2)]
        answer = await of["UploadSnapshot"].stream_unary(sent(*(c.SerializeToString() for c in chunks)), Context())
        assert pb.SnapshotReceipt.FromString(answer).size == 7
        assert servicer.given == chunks
        context = Context()
        await of["Watch"].stream_stream(sent(b""), context)
        assert [pb.SessionEvent.FromString(data).time_s for data in context.written] == [0, 1, 2]

    asyncio.run(call())


def test_what_is_large_is_read_in_another_thread():
    async def call() -> None:
        intake = Intake(IdentityLimits())
        here = threading.get_ident()
        assert await intake.work(False, threading.get_ident) == here
        assert await intake.work(True, threading.get_ident) != here
        with pytest.raises(LimitError, match="session has 600 bytes"):
            await intake.read(Limits(pb.JoinRequest), pb.JoinRequest(session="s" * 600).SerializeToString())
        intake.close()

    asyncio.run(call())


def test_what_is_no_request_never_reaches_the_method():
    servicer = Servicer()
    of = handlers(servicer)

    def refusal(*messages: bytes) -> RefusedError:
        with pytest.raises(RefusedError) as raised:
            asyncio.run(of["Join"].stream_unary(sent(*messages), Context()))
        return raised.value

    assert refusal().reason == "the call ended without a request ('', '')"
    error = refusal(
        pb.JoinRequest(session="s", device="a", training_samples=1 << 63, token="x" * 200).SerializeToString()
    )
    assert error.status is Status.INVALID_ARGUMENT
    assert error.reason == f"device 'a': training_samples is {1 << 63}; it may be 0 to 1000000000000 ('s', 'a')"
    newer = pb.JoinRequest(protocol_version=2, device="a", token="x" * 200).SerializeToString()
    assert refusal(newer).status is Status.FAILED_PRECONDITION
    assert "protocol version 2 and the coordinator version 1" in refusal(newer).reason
    assert "is no valid protobuf message" in refusal(b"\xff" * 9).reason
    assert servicer.given == []


def test_a_request_that_does_not_come_ends_and_one_caller_may_have_only_so_many():
    intake = Intake(IdentityLimits(request_s=0.05))
    of = handlers(Servicer(), intake)

    async def silent():
        await asyncio.Event().wait()
        yield b""

    async def call() -> None:
        waiting = [asyncio.create_task(of["Join"].stream_unary(silent(), Context())) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match=f"{MAX_WAITING} calls from ipv4:10.0.0.1 have sent no request"):
            await of["Join"].stream_unary(silent(), Context())
        for task in waiting:
            with pytest.raises(RefusedError, match="did not come within 0.05 s") as raised:
                await task
        assert raised.value.status is Status.DEADLINE_EXCEEDED
        assert await of["Join"].stream_unary(sent(b""), Context())

    asyncio.run(call())


def test_a_stream_that_nobody_reads_ends_and_one_caller_may_have_only_so_many():
    of = handlers(Servicer(), Intake(IdentityLimits(readers=2, reader_s=0.05)))

    async def call() -> None:
        unread = [asyncio.create_task(of["Watch"].stream_stream(sent(b""), Context(is_read=False))) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(RefusedError, match="ipv4:10.0.0.1 reads 2 streams already"):
            await of["Watch"].stream_stream(sent(b""), Context())
        for task in unread:
            with pytest.raises(RefusedError, match="was not read for 0.05 s"):
                await task
        await of["Watch"].stream_stream(sent(b""), Context())

    with contextlib.closing(asyncio.Runner()) as runner:
        runner.run(call())


def test_a_method_that_the_service_has_not_is_named():
    service = control_pb2.DESCRIPTOR.services_by_name["Control"]
    with pytest.raises(ValueError, match="edgenewton.v1.Control has no method Exchange"):
        generic_handler(service, object(), Intake(IdentityLimits()), refuse, as_bytes=("Exchange",))
