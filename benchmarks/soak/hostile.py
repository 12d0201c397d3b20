"""Devices that misbehave in the exchange: each deed is a function, and a hostile device does one after the other.

All are strangers with nothing but the protocol, or members that break it. None sends a well-formed lie about gradients:
what that does, and what stops it, is measured by other means.
"""

import contextlib
import os
import queue
import random
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import grpc
import numpy as np
from edgenewton.v1 import PROTOCOL_VERSION, TOKEN_METADATA_KEY, exchange_pb2_grpc
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import CodecChoice
from edgenewton.v1.fingerprint import spec_to_proto
from edgenewton.v1.framing import FramePacker, Layout
from edgenewton.v1.wire import write_field, write_varint

from benchmarks.soak import hostile_http
from benchmarks.soak.honest import SESSION, SPECS

PAUSE_S = 3.0
"""Mean time between two deeds of a device."""
HOLD_S = 8.0
"""How long a device holds what it does not use."""
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]
_SERVICE = "/edgenewton.v1.GradientExchange/"


@dataclass(frozen=True)
class Worker:
    """One process of hostile devices."""

    number: int
    life: int
    devices: int
    exchange: str
    """Address of the coordinator, host:port."""
    page: str
    rest: str
    recognition: str
    """Address of the recognition server's gRPC."""
    folder: str
    seed: int


class Hostile:
    """What a hostile device has to work with.

    Args:
        worker: whose device it is.
        name: of the device.
        draw: decides what is left to chance.
        is_over: set when it is to end.

    """

    def __init__(self, worker: Worker, name: str, draw: random.Random, is_over: Event) -> None:
        self.worker, self.name, self.draw, self.is_over = worker, name, draw, is_over

    @contextlib.contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """Open a connection of its own."""
        with grpc.insecure_channel(self.worker.exchange, _OPTIONS) as channel:
            yield channel

    def join(self, channel: grpc.Channel, **fields: object) -> pb.JoinReply:
        """Take a place as an honest device does, but for some fields."""
        stub = exchange_pb2_grpc.GradientExchangeStub(channel)
        request = pb.JoinRequest(
            protocol_version=PROTOCOL_VERSION,
            session=SESSION,
            device=self.name,
            tensors=[spec_to_proto(spec) for spec in SPECS],
        )
        request.MergeFrom(pb.JoinRequest(**fields))  # type: ignore[arg-type]
        reply: pb.JoinReply = stub.Join(request, timeout=10)
        return reply

    def send(self, channel: grpc.Channel, method: str, messages: Iterable[bytes], token: str = "") -> list[bytes]:
        """Call a method with bytes, and read what comes until it is refused or ends."""
        return list(self.begin(channel, method, messages, token, 2 * HOLD_S))

    def begin(
        self, channel: grpc.Channel, method: str, messages: Iterable[bytes], token: str = "", timeout_s: float = HOLD_S
    ) -> Any:
        """Begin a call with bytes; it is to be read, or cancelled."""
        metadata = ((TOKEN_METADATA_KEY, token),) if token else ()
        call = channel.stream_stream(_SERVICE + method, _as_it_is, _as_it_is)
        return call(iter(messages), metadata=metadata, timeout=timeout_s)

    def wait(self, seconds: float) -> None:
        """Wait; less if it is to end."""
        self.is_over.wait(seconds)


def frame(step: int, reply: pb.JoinReply, value: float = 0.0, *, ends: bool = True) -> bytes:
    """Return all tensors with one value in all places, and the contribution's end if wanted."""
    layout = Layout(tuple(SPECS), CodecChoice.from_proto(reply.settings).policy(), reply.settings.frame_bytes)
    packer = FramePacker(step, 1, layout.frame_bytes, is_skipped=False)
    for index, spec in enumerate(SPECS):
        values = np.full(spec.shape, value, np.float32).reshape(-1)
        for piece in layout.slices(index):
            assert not list(packer.add(piece, values[piece.key.offset :][: piece.length].data))
    packed = pb.Frame.FromString(packer.take(pb.Frame(contribution=pb.Contribution(loss=1.0))))
    if not ends:
        packed.ClearField("contribution")
    return packed.SerializeToString()


def _as_it_is(data: bytes) -> bytes:
    return data


# ---------------------------------------------------------------- deeds


def garbage(hostile: Hostile) -> None:
    """Send bytes that are no message on a member's stream."""
    with hostile.channel() as channel:
        token = hostile.join(channel).token
        hostile.send(channel, "Exchange", [hostile.draw.randbytes(hostile.draw.randrange(1, 100_000))], token)


def not_finite(hostile: Hostile) -> None:
    """Send NaN or infinity as a member."""
    with hostile.channel() as channel:
        reply = hostile.join(channel)
        value = hostile.draw.choice([float("nan"), float("inf")])
        hostile.send(channel, "Exchange", [frame(reply.first_step, reply, value)], reply.token)


def other_step(hostile: Hostile) -> None:
    """Contribute to a step that is long over, or far ahead."""
    with hostile.channel() as channel:
        reply = hostile.join(channel)
        step = hostile.draw.choice([0, reply.first_step + 1_000_000, (1 << 63) + 1])
        hostile.send(channel, "Exchange", [frame(step, reply)], reply.token)


def other_shape(hostile: Hostile) -> None:
    """Send slices that are none of the model's."""
    with hostile.channel() as channel:
        reply = hostile.join(channel)
        number, data = hostile.draw.randrange(5), bytes(4 * 49)
        piece = pb.TensorSlice(
            tensor=number, dtype=pb.DTYPE_FLOAT32, codec=pb.CODEC_FP32, shape=[7, 7], length=49, data=data
        )
        message = pb.Frame(step=reply.first_step, samples=1, slices=[piece]).SerializeToString()
        hostile.send(channel, "Exchange", [message], reply.token)


def many_slices(hostile: Hostile) -> None:
    """Send a frame of a million empty slices."""
    with hostile.channel() as channel:
        hostile.send(channel, "Exchange", [b"\x1a\x00" * 1_000_000], hostile.join(channel).token)


def padded_header(hostile: Hostile) -> None:
    """Send a slice with a header that is different each time and means the same."""
    with hostile.channel() as channel:
        token = hostile.join(channel).token
        header = b"\x08\x00" * hostile.draw.randrange(1, 50_000) + b"\x10\x01\x18\x01"
        hostile.send(channel, "Exchange", [write_field(3, len(header)) + header], token)


def oversized(hostile: Hostile) -> None:
    """Send a stranger's request, or a member's frame, that is larger than any message may be."""
    with hostile.channel() as channel:
        method = hostile.draw.choice(["Join", "Leave", "Watch", "Exchange", "UploadSnapshot"])
        token = hostile.join(channel).token if method in ("Exchange", "UploadSnapshot") else ""
        hostile.send(channel, method, [bytes(12 << 20)], token)


def huge_join(hostile: Hostile) -> None:
    """Join with 200,000 tensors, or a text of a megabyte."""
    with hostile.channel() as channel:
        head = pb.JoinRequest(protocol_version=PROTOCOL_VERSION, session=SESSION, device=hostile.name)
        if hostile.draw.random() < 0.5:
            head.software = "s" * (1 << 20)
            hostile.send(channel, "Join", [head.SerializeToString()])
        tensor = pb.TensorSpec(name="w", dtype=pb.DTYPE_FLOAT32, kind=pb.TENSOR_KIND_GRADIENT).SerializeToString()
        content = head.SerializeToString() + (write_field(4, len(tensor)) + tensor) * 200_000
        hostile.send(channel, "Join", [content])


def huge_number(hostile: Hostile) -> None:
    """Tell of an evaluation of more samples than a database can count."""
    with hostile.channel() as channel:
        reply = hostile.join(channel)
        message = pb.Frame.FromString(frame(reply.first_step, reply))
        message.contribution.evaluation.samples = 1 << 63
        hostile.send(channel, "Exchange", [message.SerializeToString()], reply.token)


def squat(hostile: Hostile) -> None:
    """Join with another model, or a state of a later step."""
    with hostile.channel() as channel:
        if hostile.draw.random() < 0.5:
            hostile.join(channel, options={"model": "another"})
        else:
            hostile.join(channel, next_step=1_000_000_000, weights_digest=b"mine" * 8)


def hostage(hostile: Hostile) -> None:
    """Send the slices of every step, and never their end."""
    with hostile.channel() as channel:
        reply = hostile.join(channel)
        frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        frames.put(frame(reply.first_step, reply, ends=False))
        call = hostile.begin(channel, "Exchange", iter(frames.get, None), reply.token)
        try:
            for answer in call:
                told = pb.Frame.FromString(answer)
                if told.HasField("commit"):
                    frames.put(frame(told.step + 1, reply, ends=False))
        finally:
            frames.put(None)


def silent_stream(hostile: Hostile) -> None:
    """Open a member's stream, and neither send nor read nor beat."""
    with hostile.channel() as channel:
        token = hostile.join(channel).token
        nothing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        call = hostile.begin(channel, "Exchange", iter(nothing.get, None), token)
        hostile.wait(HOLD_S)
        nothing.put(None)
        call.cancel()


def half_sent_calls(hostile: Hostile) -> None:
    """Begin calls and never send their requests."""
    with hostile.channel() as channel:
        nothing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        methods = [hostile.draw.choice(["Join", "Leave", "Watch", "DownloadSnapshot"]) for _ in range(4)]
        calls = [hostile.begin(channel, method, iter(nothing.get, None)) for method in methods]
        hostile.wait(HOLD_S)
        for call in calls:
            nothing.put(None)
            call.cancel()


def unread_watches(hostile: Hostile) -> None:
    """Watch several times and read nothing."""
    with hostile.channel() as channel:
        stub = exchange_pb2_grpc.GradientExchangeStub(channel)
        watches: list[Any] = [stub.Watch(pb.WatchRequest(session=SESSION), timeout=HOLD_S) for _ in range(4)]
        hostile.wait(HOLD_S)
        for watch in watches:
            watch.cancel()


def unasked_state(hostile: Hostile) -> None:
    """Hand in a state that nobody asked for, and declare gigabytes."""
    with hostile.channel() as channel:
        token = hostile.join(channel).token
        header = pb.SnapshotHeader(size=hostile.draw.choice([8 << 30, 10]), sha256=bytes(32))
        chunk = pb.SnapshotChunk(header=header, data=b"x" * 1_000).SerializeToString()
        hostile.send(channel, "UploadSnapshot", [chunk] * 3, token)


def stolen_token(hostile: Hostile) -> None:
    """Speak with tokens that are made up, and say goodbye for others."""
    with hostile.channel() as channel:
        for _ in range(20):
            with contextlib.suppress(grpc.RpcError):
                hostile.send(channel, "Exchange", [b""], hostile.draw.randbytes(16).hex())
        other = f"honest-{hostile.draw.randrange(6)}-{hostile.draw.randrange(8)}"
        leave = pb.LeaveRequest(session=SESSION, device=other, token="not its own", reason="r" * 60_000)
        hostile.send(channel, "Leave", [leave.SerializeToString()])


def come_and_go(hostile: Hostile) -> None:
    """Join and leave twenty times, with long texts."""
    with hostile.channel() as channel:
        for _ in range(20):
            reply = hostile.join(channel, software="s" * 60_000)
            leave = pb.LeaveRequest(session=SESSION, device=hostile.name, token=reply.token, reason="r" * 60_000)
            hostile.send(channel, "Leave", [leave.SerializeToString()])


def raw_bytes(hostile: Hostile) -> None:
    """Send garbage, HTTP/1, a TLS handshake or half a preface to the exchange's port, and hold it."""
    host, port = hostile.worker.exchange.rsplit(":", 1)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    sent = hostile.draw.choice(
        [
            hostile.draw.randbytes(5_000),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
            preface[:9],
            preface + b"\xff\xff\xff\x00\x00" + bytes(4),
            preface + bytes([0, 0, 4, 1, 4]) + write_varint(0) + b"\x00\x00\x01" + b"\xff" * 4,
            b"",
        ]
    )
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(sent)
        hostile.wait(hostile.draw.uniform(0.0, HOLD_S))


def page_deed(hostile: Hostile) -> None:
    """Do one of the deeds in HTTP to the page."""
    hostile_http.misbehave(hostile.worker.page, hostile.draw, hostile.wait)


def rest_deed(hostile: Hostile) -> None:
    """Do one of the deeds in HTTP to the recognition server."""
    hostile_http.misbehave(hostile.worker.rest, hostile.draw, hostile.wait)


def swollen_recognition(hostile: Hostile) -> None:
    """Ask the recognition server for more than it can give."""
    hostile_http.swell(hostile.worker.rest, hostile.draw)


def recognition_bytes(hostile: Hostile) -> None:
    """Send the recognition server's gRPC bytes that are no request, or far too many."""
    with grpc.insecure_channel(hostile.worker.recognition, _OPTIONS) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", _as_it_is, _as_it_is)
        size = hostile.draw.choice([10, 10_000, 40 << 20])
        call(hostile.draw.randbytes(size) if size < 1 << 20 else bytes(size), timeout=10)


DEEDS: tuple[Callable[[Hostile], None], ...] = (
    garbage,
    not_finite,
    other_step,
    other_shape,
    many_slices,
    padded_header,
    oversized,
    huge_join,
    huge_number,
    squat,
    hostage,
    silent_stream,
    half_sent_calls,
    unread_watches,
    unasked_state,
    stolen_token,
    come_and_go,
    raw_bytes,
    page_deed,
    rest_deed,
    swollen_recognition,
    recognition_bytes,
)


def run_worker(worker: Worker) -> None:
    """Run a worker's devices, each in a thread, until SIGTERM."""
    is_over = Event()
    signal.signal(signal.SIGTERM, lambda *_: is_over.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    devices = [Thread(target=_live, args=(worker, index, is_over), daemon=True) for index in range(worker.devices)]
    for device in devices:
        device.start()
    is_over.wait()
    time.sleep(0.5)
    os._exit(0)


def _live(worker: Worker, index: int, is_over: Event) -> None:
    """Do one deed after the other, and write down which and how it was answered."""
    name = f"hostile-{worker.number}-{index}"
    draw = random.Random(f"{worker.seed} {name} {worker.life}")
    hostile = Hostile(worker, name, draw, is_over)
    with (Path(worker.folder) / f"{name}.deeds").open("a", buffering=1) as deeds:
        while not is_over.wait(draw.expovariate(1 / PAUSE_S)):
            deed = draw.choice(DEEDS)
            answer = "nothing"
            try:
                deed(hostile)
            except grpc.RpcError as error:
                answer = error.code().name
            except OSError as error:
                answer = type(error).__name__
            deeds.write(f"{deed.__name__} {answer}\n")
