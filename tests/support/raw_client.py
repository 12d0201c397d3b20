"""A coordinator to attack, in plaintext or with mutual TLS, and a caller that sends it whatever bytes it is given.

`Target` opens channels for devices of any name: with TLS each has a certificate of its own. `RawCaller` calls methods
with messages as bytes, of which none need be valid.
"""

import contextlib
import datetime as dt
import itertools
from collections.abc import Iterable
from pathlib import Path

import grpc
from bare_client import Device
from edgenewton.common.identity import Kind
from edgenewton.common.tls import TlsFiles
from edgenewton.v1 import TOKEN_METADATA_KEY, exchange_pb2_grpc
from edgenewton.v1.wire import write_field, write_varint

from coordinator.identity.authority import Authority
from coordinator.identity.gate import AccessGate
from coordinator.identity.server_tls import ServerTls, ServerTlsFiles
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings

OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]
LIFETIME = dt.timedelta(days=1)


class Target:
    """A coordinator that is attacked.

    Args:
        folder: for certificates, if there are any.
        is_secured: whether it takes mutual TLS alone.
        options: of `embedded_coordinator`: `record`, `limits`.

    """

    def __init__(self, folder: Path, *, is_secured: bool, **options) -> None:
        self.folder = folder
        self.is_secured = is_secured
        self._options = options
        self._channels: dict[str, grpc.Channel] = {}
        self._files: dict[str, TlsFiles] = {}
        self._sessions = itertools.count()

    def __enter__(self) -> "Target":
        self._stack = contextlib.ExitStack()
        gate = None
        if self.is_secured:
            self._authority = Authority.create(self.folder / "ca")
            self._authority.issue(Kind.COORDINATOR, "c0", LIFETIME, hosts=["127.0.0.1"])
            gate = AccessGate(ServerTls(ServerTlsFiles.parse(str(self.folder / "ca"))))
        self.coordinator = self._stack.enter_context(embedded_coordinator(gate=gate, **self._options))
        return self

    def __exit__(self, *error: object) -> None:
        for channel in self._channels.values():
            channel.close()
        self._stack.close()

    def session(self, **settings) -> str:
        """Open a session of a name of its own, by default for three devices of which two suffice; return the name."""
        name = f"s{next(self._sessions)}"
        self.coordinator.create_session(name, SessionSettings(**{"devices": 3, "quorum": 2} | settings))
        return name

    def room(self, session: str):
        return self.coordinator.directory.find(session)

    def channel(self, device: str) -> grpc.Channel:
        """Return a device's channel, always the same."""
        if device not in self._channels:
            self._channels[device] = self.new_channel(device)
        return self._channels[device]

    def new_channel(self, device: str) -> grpc.Channel:
        """Return a channel with a connection of its own, which speaks for a device."""
        address = self.coordinator.address
        if not self.is_secured:
            return grpc.insecure_channel(address, OPTIONS)
        if device not in self._files:
            self._files[device] = TlsFiles.in_folder(self._authority.issue(Kind.DEVICE, device, LIFETIME))
        return grpc.secure_channel(address, self._files[device].read().channel_credentials(), OPTIONS)

    def stub(self, device: str) -> exchange_pb2_grpc.GradientExchangeStub:
        return exchange_pb2_grpc.GradientExchangeStub(self.channel(device))

    def device(self, name: str, session: str, **options) -> Device:
        """Let a well-behaved device join and open its stream."""
        return Device(self.stub(name), name, session=session, **options)

    def raw(self, device: str) -> "RawCaller":
        return RawCaller(self.channel(device))


class RawCaller:
    """Calls the exchange's methods with messages as bytes."""

    def __init__(self, channel: grpc.Channel, service: str = "edgenewton.v1.GradientExchange") -> None:
        self._channel = channel
        self._service = service

    def stream(self, method: str, messages: Iterable[bytes], token: str = "", timeout: float = 20):
        """Begin a call; whatever the method is, it is sent messages as they come and read as a stream."""
        metadata = ((TOKEN_METADATA_KEY, token),) if token else ()
        call = self._channel.stream_stream(f"/{self._service}/{method}")
        return call(iter(messages), metadata=metadata, timeout=timeout)

    def call(self, method: str, *messages: bytes, token: str = "", timeout: float = 20) -> list[bytes]:
        """Return all answers to some messages, after which this side is done.

        Raises:
            grpc.RpcError: the call was refused.

        """
        return list(self.stream(method, messages, token, timeout))

    def refusal(self, method: str, *messages: bytes, token: str = "", timeout: float = 20):
        """Return status and text with which the coordinator refuses messages."""
        try:
            answers = self.call(method, *messages, token=token, timeout=timeout)
        except grpc.RpcError as error:
            return error.code(), error.details()
        raise AssertionError(f"{method} was not refused; it answered {answers}")


def field(number: int, content: bytes) -> bytes:
    """Return a field with a length: a text, bytes or a message."""
    return write_field(number, len(content)) + content


def number_field(number: int, value: int) -> bytes:
    """Return a field with an integer."""
    return write_varint(number << 3) + write_varint(value)


def padded(value: int, size: int) -> bytes:
    """Return a number in more bytes than it takes: valid for a lenient reader, and different for each size."""
    groups = [value >> (7 * index) & 0x7F for index in range(size)]
    return bytes(group | 0x80 for group in groups[:-1]) + bytes(groups[-1:])


def assert_trains_on(*devices: Device, step: int = 0) -> None:
    """Check that these devices can still commit a step."""
    for device in devices:
        device.send_gradient(step, 2.0)
    for device in devices:
        commit = next(frame.commit for frame in device.stream if frame.HasField("commit") and frame.step == step)
        assert commit.devices >= len(devices)
