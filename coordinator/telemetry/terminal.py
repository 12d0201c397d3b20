"""What a terminal shows of a session, or of all sessions of a coordinator."""

import time

from edgenewton.v1 import exchange_pb2 as pb
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from coordinator.telemetry.statistics import DeviceStatistics, SessionStatistics

MAX_ERRORS = 5
"""So many devices' last errors are shown."""
_NONE = float("nan")


class TerminalView:
    """Shows, wherever Rich prints it, what the events that it was fed with `apply` come to.

    Several sessions, as the rounds of a Flower run, are shown as one: devices and bytes are those of all of them.
    """

    def __init__(self) -> None:
        self.session = ""
        """The one whose phase changed last."""
        self.statistics = SessionStatistics("")
        """Over all sessions."""

    def apply(self, event: pb.SessionEvent) -> None:
        """Take one event in."""
        self.statistics.apply(event)
        if event.WhichOneof("event") == "phase":
            self.session = event.session

    def __rich__(self) -> RenderableType:
        # Rich may draw in another thread than that of the events: everything is copied before it is looked at.
        wrong = [device for device in list(self.statistics.devices.values()) if device.last_error]
        wrong.sort(key=lambda device: device.last_error_at or 0.0)
        errors = [Text(f"{device.device}: {device.last_error}", style="red") for device in wrong[-MAX_ERRORS:]]
        return Group(self._head(), self._progress(), self._table(), *errors)

    def _head(self) -> Text:
        statistics = self.statistics
        title = f"{self.session}: {statistics.phase}" if self.session else "no session yet: waiting"
        # A loss that is no number is in no curve, and an earlier step's would say that all is well.
        loss = dict(statistics.curves.loss).get(statistics.step or 0, _NONE)
        accuracy = statistics.curves.accuracy.last
        return Text.assemble(
            (title, "bold"),
            f"  step {statistics.step or 0}  loss {loss:.4f}  ",
            f"accuracy {accuracy:.1%}" if accuracy is not None else "accuracy -",
            " (averaged weights)" if accuracy is not None and statistics.averages else "",
            f"  {statistics.every} batches an exchange" if statistics.every > 1 else "",
            f"  moves in {statistics.form}" if statistics.form else "",
            f"  saved by {statistics.codec} {megabytes(statistics.saved)}" if statistics.saved > 0 else "",
        )

    def _progress(self) -> Text:
        return Text(self.statistics.progress(time.time()) if self.statistics.step is not None else "")

    def _table(self) -> Table:
        table = Table("device", "state", "samples", "batches", "loss", "lag", "late", "sent", "received", expand=False)
        for column in table.columns[2:]:
            column.justify = "right"
        reasons = {i.device: i.text for i in list(self.statistics.incidents) if i.kind == "left"}
        for name, device in sorted(self.statistics.devices.items()):
            table.add_row(
                name,
                _state(device, reasons.get(name, device.state)),
                f"{device.training_samples}",
                f"{device.batches} ({device.skipped} skipped)" if device.skipped else f"{device.batches}",
                f"{_NONE if device.loss is None else device.loss:.4f}",
                f"{device.lag_s:.2f} s",
                f"{device.left_out}" if device.left_out else "",
                megabytes(device.received),  # what the coordinator received, the device sent
                megabytes(device.sent),
            )
        return table


def _state(device: DeviceStatistics, why_gone: str) -> str:
    """Return where a device stands, or why it is gone."""
    aside_s = device.set_aside_s(time.time())
    if device.state == "gone" or not aside_s or device.is_gone:
        return why_gone if device.state == "gone" else device.state
    return f"{device.state}, not waited for: {aside_s:.0f} s"


def megabytes(count: float) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e6:.2f} MB"
