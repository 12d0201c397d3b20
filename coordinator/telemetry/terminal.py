"""What a terminal shows of a session, or of all sessions of a coordinator."""

import time
from typing import Any

from edgenewton.common.progress import seconds_left
from edgenewton.common.tables import Column, Table
from edgenewton.v1 import exchange_pb2 as pb
from rich.console import Group, RenderableType
from rich.text import Text

from coordinator.telemetry.statistics import DeviceStatistics, SessionStatistics

MAX_ERRORS = 5
"""So many devices' last errors are shown."""
_NONE = float("nan")
_COLUMNS = (
    Column("device", is_name=True),
    Column("state", is_name=True),
    Column("samples", rank=5, is_right=True),
    Column("batches", is_right=True),
    Column("own loss", rank=1, is_right=True),
    Column("lag", rank=2, is_right=True),
    Column("late", rank=6, is_right=True),
    Column("sent", rank=4, is_right=True),
    Column("received", rank=3, is_right=True),
)


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

    def line(self) -> str:
        """Return how far the run is, in a line for a log."""
        return f"{self._head().plain}  {self._progress().plain}"

    def figures(self) -> dict[str, Any]:
        """Return what is shown, for JSON: see docs/operations.md."""
        statistics, now = self.statistics, time.time()
        per_s = statistics.batches_per_s(now)
        return {
            "session": self.session,
            "phase": statistics.phase,
            "reason": statistics.reason,
            "step": statistics.step,
            "done": statistics.done,
            "run_steps": statistics.run_steps,
            "batches_per_s": per_s,
            "left_s": seconds_left(statistics.done, statistics.run_steps, per_s),
            "loss": self._loss(),
            "accuracy": statistics.curves.accuracy.last,
            "best": statistics.best._asdict() if statistics.best is not None else None,
            "codec": statistics.codec,
            "masked": statistics.is_masked,
            "privacy": statistics.privacy.figures(),
            "received": statistics.received,
            "sent": statistics.sent,
            "saved": statistics.saved,
            "devices": [_figures(device) for _, device in sorted(statistics.devices.items())],
        }

    def __rich__(self) -> RenderableType:
        # Rich may draw in another thread than that of the events: everything is copied before it is looked at.
        wrong = [device for device in list(self.statistics.devices.values()) if device.last_error]
        wrong.sort(key=lambda device: device.last_error_at or 0.0)
        errors = [Text(f"{device.device}: {device.last_error}", style="red") for device in wrong[-MAX_ERRORS:]]
        return Group(self._head(), self._progress(), self._table(), *errors)

    def _head(self) -> Text:
        statistics = self.statistics
        title = f"{self.session}: {statistics.phase}" if self.session else "no session yet: waiting"
        loss = self._loss()
        accuracy, budget = statistics.curves.accuracy.last, statistics.budget
        return Text.assemble(
            (title, "bold"),
            f"  step {statistics.step or 0}  loss {loss:.4f}  ",
            f"accuracy {accuracy:.1%}" if accuracy is not None else "accuracy -",
            " (averaged weights)" if accuracy is not None and statistics.averages else "",
            f"  {statistics.every} batches an exchange" if statistics.every > 1 else "",
            f"  moves in {statistics.form}" if statistics.form else "",
            "  masked: sums only" if statistics.is_masked else "",
            f"  epsilon {statistics.epsilon or 0.0:.3g} of {budget.epsilon:g}" if budget is not None else "",
            f"  saved by {statistics.codec} {megabytes(statistics.saved)}" if statistics.saved > 0 else "",
        )

    def _loss(self) -> float:
        statistics = self.statistics
        # A loss that is no number is in no curve, and an earlier step's would say that all is well; but averages at the
        # end of a run have none.
        step, last = statistics.step or 0, statistics.curves.loss.last
        is_average = statistics.run_steps is not None and step >= statistics.run_steps
        return dict(statistics.curves.loss).get(step, last if is_average and last is not None else _NONE)

    def _progress(self) -> Text:
        return Text(self.statistics.progress(time.time()) if self.statistics.step is not None else "")

    def _table(self) -> Table:
        table = Table(*_COLUMNS)
        reasons = {i.device: i.text for i in list(self.statistics.incidents) if i.kind == "left"}
        for name, device in sorted(self.statistics.devices.items()):
            table.add(
                name,
                _state(device, reasons.get(name, device.state)),
                f"{device.training_samples}",
                f"{device.batches} ({device.skipped} skipped)" if device.skipped else f"{device.batches}",
                "masked" if self.statistics.is_masked else f"{_NONE if device.loss is None else device.loss:.4f}",
                f"{device.lag_s:.2f} s",
                f"{device.left_out}" if device.left_out else "",
                megabytes(device.received),  # what the coordinator received, the device sent
                megabytes(device.sent),
            )
        return table


def _figures(device: DeviceStatistics) -> dict[str, Any]:
    return {
        "device": device.device,
        "state": device.state,
        "training_samples": device.training_samples,
        "step": device.step,
        "batches": device.batches,
        "skipped": device.skipped,
        "own_loss": device.loss,
        "epsilon": device.epsilon,
        "lag_s": device.lag_s,
        "late": device.left_out,
        "sent": device.received,
        "received": device.sent,
        "last_error": device.last_error,
    }


def _state(device: DeviceStatistics, why_gone: str) -> str:
    """Return where a device stands, or why it is gone."""
    aside_s = device.set_aside_s(time.time())
    if device.state == "gone" or not aside_s or device.is_gone:
        return why_gone if device.state == "gone" else device.state
    return f"{device.state}, not waited for: {aside_s:.0f} s"


def megabytes(count: float) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e6:.2f} MB"
