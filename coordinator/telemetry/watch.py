"""Follows sessions through the coordinator's `Watch` stream, and shows them in a terminal."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from edgenewton.common.tls import TlsFiles, open_channel
from edgenewton.v1 import MAX_MESSAGE_BYTES, exchange_pb2_grpc
from edgenewton.v1 import exchange_pb2 as pb
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from coordinator.telemetry.statistics import _PHASE_NAMES, SessionStatistics

MAX_ERRORS = 5
"""So many devices' last errors are shown."""


def follow(address: str, session: str = "", tls: TlsFiles | None = None) -> Iterator[pb.SessionEvent]:
    """Yield the events of one session, or of all sessions of a coordinator, from their beginning.

    Args:
        address: of the coordinator, host:port.
        session: its name; empty for all sessions.
        tls: certificate to show; None for plaintext.

    Raises:
        grpc.RpcError: the coordinator does not answer, refuses, or knows no such session.
        TlsError: the certificate cannot be used.

    """
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    with open_channel(address, tls, options) as channel:
        yield from exchange_pb2_grpc.GradientExchangeStub(channel).Watch(pb.WatchRequest(session=session))


@dataclass
class DeviceState:
    """One device, over all sessions that it took part in."""

    state: str = "joined"
    training_samples: int = 0
    batches: int = 0
    loss: float = float("nan")
    sent: int = 0
    """Bytes that the device sent in the session that is on."""
    received: int = 0
    sent_before: int = 0
    """Bytes that it sent in sessions that are over."""
    received_before: int = 0


@dataclass(frozen=True)
class Traffic:
    """Bytes that a device sent and received, in the mean over the devices."""

    sent: float
    received: float


@dataclass
class SessionView:
    """What a person wants to know of the sessions so far; feed it events with `apply`."""

    phase: str = "waiting"
    reason: str = ""
    session: str = ""
    step: int = -1
    loss: float = float("nan")
    devices: dict[str, DeviceState] = field(default_factory=dict)
    accuracy: dict[int, float] = field(default_factory=dict)
    """Accuracy on all held-out samples after so many batches of each device."""
    seconds: dict[int, float] = field(default_factory=dict)
    """Seconds from the beginning of training to the commit of the last of so many batches."""
    traffic: dict[int, Traffic] = field(default_factory=dict)
    """Bytes behind so many batches of each device."""
    statistics: SessionStatistics = field(default_factory=lambda: SessionStatistics(""))
    """Over all sessions too: links, lags, and what went wrong."""
    _began_at: float | None = None
    _sent: dict[int, dict[str, int]] = field(default_factory=dict)

    @property
    def batches(self) -> int:
        """Batches of each device that were committed."""
        return self.step + 1

    def apply(self, event: pb.SessionEvent) -> None:
        """Take one event in."""
        self.statistics.apply(event)
        match event.WhichOneof("event"):
            case "phase":
                self.session, self.reason = event.session, event.phase.reason
                self.phase = _PHASE_NAMES.get(event.phase.phase, "unknown")
                if event.phase.phase == pb.PHASE_TRAINING and self._began_at is None:
                    self._began_at = event.time_s
            case "joined":
                device = self.devices.setdefault(event.joined.device, DeviceState())
                device.state, device.training_samples = "joined", event.joined.training_samples
            case "report":
                self._apply_report(event.report)
            case "step":
                self._apply_step(event)
            case "left":
                device = self.devices.setdefault(event.left.device, DeviceState())
                device.state = event.left.reason
                device.sent_before += event.left.bytes_received
                device.received_before += event.left.bytes_sent
                device.sent = device.received = 0

    def _apply_report(self, report: pb.DeviceReport) -> None:
        device = self.devices.setdefault(report.device, DeviceState())
        device.state, device.loss = "training", report.contribution.loss
        device.batches += 1
        device.sent, device.received = report.bytes_received, report.bytes_sent
        # This step's bytes have gone up, but only those of the steps before have come down.
        self._sent.setdefault(report.step + 1, {})[report.device] = device.sent_before + device.sent
        before = self._sent.get(report.step, {})
        if len(before) == len(self.devices):
            received = sum(state.received_before + state.received for state in self.devices.values())
            self.traffic[report.step] = Traffic(sum(before.values()) / len(before), received / len(before))

    def _apply_step(self, event: pb.SessionEvent) -> None:
        self.step, self.loss = event.step.step, event.step.commit.loss
        if self._began_at is not None:
            self.seconds[self.batches] = event.time_s - self._began_at
        if event.step.HasField("evaluation"):
            evaluation = event.step.evaluation
            self.accuracy[event.step.step] = evaluation.correct / evaluation.samples

    def __rich__(self) -> RenderableType:
        accuracy = self.accuracy[max(self.accuracy)] if self.accuracy else None
        head = Text.assemble(
            (f"{self.session or 'no session yet'}: {self.phase}", "bold"),
            f"  step {max(self.step, 0)}  loss {self.loss:.4f}  ",
            f"accuracy {accuracy:.1%}" if accuracy is not None else "accuracy -",
            f"  saved by {self.statistics.codec} {megabytes(self.statistics.saved)}"
            if self.statistics.saved > 0
            else "",
        )
        table = Table("device", "state", "samples", "batches", "loss", "lag", "late", "sent", "received", expand=False)
        for column in table.columns[2:]:
            column.justify = "right"
        for name, device in sorted(self.devices.items()):
            told = self.statistics.devices.get(name)
            table.add_row(
                name,
                device.state,
                f"{device.training_samples}",
                f"{device.batches}",
                f"{device.loss:.4f}",
                f"{told.lag_s:.2f} s" if told is not None else "",
                f"{told.left_out}" if told is not None and told.left_out else "",
                megabytes(device.sent_before + device.sent),
                megabytes(device.received_before + device.received),
            )
        wrong = [d for d in self.statistics.devices.values() if d.last_error]
        wrong.sort(key=lambda d: d.last_error_at or 0.0)
        errors = [Text(f"{d.device}: {d.last_error}", style="red") for d in wrong[-MAX_ERRORS:]]
        return Group(head, table, *errors)


def megabytes(count: float) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e6:.2f} MB"
