"""A bare client that holds the protocol's own stubs: it sends whatever frames it is given."""

import queue
import threading
import time

import grpc
import numpy as np
import pytest
from edgenewton.v1 import PROTOCOL_VERSION, TOKEN_METADATA_KEY
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import CodecChoice
from edgenewton.v1.fingerprint import spec_to_proto
from edgenewton.v1.framing import FramePacker, Layout
from edgenewton.v1.tensor_spec import TensorSpec

SPEC = TensorSpec("fc.weight", (2, 3))
LAYOUT = Layout((SPEC,), CodecChoice().policy(), 1 << 20)


class Device:
    """A bare client: joins, and sends whatever frames it is given."""

    def __init__(self, stub, name: str, spec: TensorSpec = SPEC, session: str = "s", **fields) -> None:
        self.name = name
        self.reply = stub.Join(join_request(name, spec, session, **fields), timeout=5)
        self.metadata = ((TOKEN_METADATA_KEY, self.reply.token),)
        self._frames: queue.SimpleQueue = queue.SimpleQueue()
        self.stream = stub.Exchange(iter(self._frames.get, None), metadata=self.metadata, timeout=20)

    def send(self, frame: pb.Frame) -> None:
        self._frames.put(frame)

    def send_gradient(self, step: int, values, samples: int = 1) -> None:
        self.send(gradient_frame(step, values, samples))

    def beat(self, every_s: float) -> None:
        """Send heartbeats until the stream ends."""

        def run() -> None:
            while self.stream.is_active():
                self.send(pb.Frame(heartbeat=pb.Heartbeat()))
                time.sleep(every_s)

        threading.Thread(target=run, daemon=True).start()

    def end(self) -> None:
        self._frames.put(None)

    def error(self) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as raised:
            for _ in self.stream:
                pass
        return raised.value


def join_request(name: str, spec: TensorSpec = SPEC, session: str = "s", version: int = PROTOCOL_VERSION, **fields):
    return pb.JoinRequest(
        protocol_version=version, session=session, device=name, tensors=[spec_to_proto(spec)], **fields
    )


def gradient_frame(step: int, values, samples: int = 1, *, skipped: bool = False, **contribution) -> pb.Frame:
    flat = np.full(6, values, np.float32)
    packer = FramePacker(step, samples, LAYOUT.frame_bytes, is_skipped=skipped)
    (piece,) = LAYOUT.slices(0)
    assert not list(packer.add(piece, flat.data))
    news = pb.Frame(contribution=pb.Contribution(loss=float(flat[0]), **contribution))
    return pb.Frame.FromString(packer.take(news))


def elements(frame: pb.Frame) -> np.ndarray:
    return np.frombuffer(frame.slices[0].data, "<f4")


def wait_until_open(coordinator, device: str, session: str = "s") -> None:
    """Return once the coordinator knows of a device's stream."""
    deadline = time.monotonic() + 10
    room = coordinator.directory.find(session)
    while not room.session.members[device].is_connected:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refused(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), raised.value.details()
