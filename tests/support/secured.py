"""A coordinator with certificates of an authority of its own, and a session of two devices that trains on it."""

import contextlib
import datetime as dt
import json
from pathlib import Path

import grpc
import numpy as np
from bare_client import Device, elements
from edgenewton.common.identity import Kind
from edgenewton.common.tls import TlsFiles
from edgenewton.v1 import exchange_pb2_grpc

from coordinator.identity.audit import AuditLog
from coordinator.identity.authority import Authority
from coordinator.identity.gate import AccessGate
from coordinator.identity.limits import IdentityLimits
from coordinator.identity.server_tls import ServerTls, ServerTlsFiles
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings

LIFETIME = dt.timedelta(days=1)
NAMES = ("a", "b", "c")


class Secured:
    """An authority, a coordinator and its session "s", in which the devices "a" and "b" train."""

    def __init__(self, folder: Path, limits: IdentityLimits | None = None) -> None:
        self.folder = folder
        self.authority = Authority.create(folder / "ca")
        self.authority.issue(Kind.COORDINATOR, "c0", LIFETIME, hosts=["127.0.0.1"])
        self.files = {name: self.issue(name) for name in NAMES}
        self.files["boss"] = self.issue("boss", "operator")
        self.audit_path = folder / "audit.jsonl"
        self._limits = limits
        self._channels: list[grpc.Channel] = []

    def __enter__(self) -> "Secured":
        self._stack = contextlib.ExitStack()
        gate = AccessGate(ServerTls(ServerTlsFiles.parse(str(self.folder / "ca"))), AuditLog(self.audit_path))
        self.coordinator = self._stack.enter_context(embedded_coordinator(gate=gate, limits=self._limits))
        self.address = self.coordinator.address
        self.coordinator.create_session(
            "s", SessionSettings(devices=2, max_devices=9, rejoin_deadline_s=0, heartbeat_s=20, lease_s=60)
        )
        self.devices = [Device(self.stub(name), name) for name in ("a", "b")]
        self.steps = 0
        self.train()
        return self

    def __exit__(self, *error: object) -> None:
        for channel in self._channels:
            channel.close()
        self._stack.close()

    def issue(self, name: str, *labels: str, **options) -> TlsFiles:
        return TlsFiles.in_folder(
            self.authority.issue(Kind.DEVICE, name, options.pop("lifetime", LIFETIME), labels=labels, **options)
        )

    def channel(self, files: TlsFiles | str) -> grpc.Channel:
        if isinstance(files, str):
            files = self.files[files]
        return self.channel_with(files.read().channel_credentials())

    def channel_with(self, credentials: grpc.ChannelCredentials) -> grpc.Channel:
        channel = grpc.secure_channel(self.address, credentials)
        self._channels.append(channel)
        return channel

    def stub(self, files: TlsFiles | str) -> exchange_pb2_grpc.GradientExchangeStub:
        return exchange_pb2_grpc.GradientExchangeStub(self.channel(files))

    def train(self) -> None:
        """Let the session take a step; the devices that are to train do."""
        for device, values in zip(self.devices, (1.0, 3.0), strict=True):
            device.send_gradient(self.steps, values)
        for device in self.devices:
            frame = next(frame for frame in device.stream if frame.HasField("commit") and frame.step == self.steps)
            assert np.allclose(elements(frame), 2.0)
        self.steps += 1

    def audited(self, event: str, **fields) -> list[dict]:
        """Return the audit log's lines of an event that have these fields."""
        lines = [json.loads(line) for line in self.audit_path.read_text().splitlines()]
        return [line for line in lines if line["event"] == event and fields.items() <= line.items()]
