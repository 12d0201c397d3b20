"""What a report tells of a run, and where it comes from: a coordinator's record, or the output of a Flower run."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgenewton.common.files import previous_of
from edgenewton.common.progress import Best, better
from edgenewton.common.sealed_file import DamagedError, Kind, parse_json, read_checked, tensors_metadata
from edgenewton.v1.privacy_mode import PrivacyMode
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.telemetry.history import StepRecord
from coordinator.telemetry.record import Record, RecordError, SessionRecord
from coordinator.telemetry.run_files import HISTORY_NAME, RECORD_NAME
from coordinator.telemetry.statistics import DeviceStatistics, Incident, SessionStatistics


class ReportError(RuntimeError):
    """There is nothing to report on; the text says why."""


@dataclass(frozen=True)
class Round:
    """A round of a Flower run."""

    number: int
    step: int
    train: Mapping[str, float]
    evaluate: Mapping[str, float]


@dataclass(frozen=True)
class Checkpoint:
    """Weights in a file."""

    name: str
    step: str
    task: str
    size: int


@dataclass
class Run:
    """What is known of a run."""

    title: str
    source: Path
    sessions: list[str] = field(default_factory=list)
    phase: str = ""
    reason: str = ""
    began_at: float | None = None
    ended_at: float | None = None
    steps: list[StepRecord] = field(default_factory=list)
    """In order; of a long run not all."""
    committed: int = 0
    run_steps: int | None = None
    """Steps of the whole run; None if no device said."""
    best: Best | None = None
    """The best accuracy."""
    averages: bool = False
    """Whether accuracies are those of averaged weights."""
    samples: int = 0
    received: int = 0
    sent: int = 0
    saved: int = 0
    left_out: int = 0
    skipped: int = 0
    """Batches that devices skipped."""
    privacy: PrivacyMode = field(default_factory=PrivacyMode)
    """What the devices were promised in the last session, and what was spent."""
    refusals: Counter[str] = field(default_factory=Counter)
    devices: dict[str, DeviceStatistics] = field(default_factory=dict)
    incidents: list[Incident] = field(default_factory=list)
    tensors: tuple[TensorSpec, ...] = ()
    settings: dict[str, object] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)

    @property
    def accuracies(self) -> list[tuple[int, float]]:
        """Accuracy on held-out samples after so many steps."""
        tried = [(step.step, step.accuracy) for step in self.steps if step.accuracy is not None]
        rounds = [(r.step, r.evaluate["accuracy"]) for r in self.rounds if "accuracy" in r.evaluate]
        return sorted([*tried, *rounds])

    @property
    def last_loss(self) -> float | None:
        """The training loss of the last exchange that had one: over the batches of all devices."""
        return next((step.loss for step in reversed(self.steps) if step.loss is not None), None)

    @property
    def best_of_all(self) -> Best | None:
        """The best accuracy, also of a step that is not kept, or of a round's evaluation."""
        best = self.best
        for step, accuracy in self.accuracies:
            best = better(best, step, accuracy)
        return best


def read_run(source: Path, session: str | None = None) -> Run:
    """Return what is known of a run.

    Args:
        source: a record of `edge-coordinator serve`, or the output folder of a Flower run.
        session: the session to tell of; None for all of them.

    Raises:
        ReportError: there is no run; the text says why.

    """
    try:
        if source.is_dir():
            return _read_flower(source, session)
        if not source.exists():
            raise ReportError(f"{source} does not exist; name a coordinator's record or a Flower run's output folder")
        run = Run("", source)
        _read_record(run, source, session)
    except RecordError as error:
        raise ReportError(str(error)) from None
    run.title = run.sessions[0] if len(run.sessions) == 1 else f"{len(run.sessions)} sessions"
    return run


def _read_flower(folder: Path, session: str | None) -> Run:
    history, record = folder / HISTORY_NAME, folder / RECORD_NAME
    if not history.exists() and not record.exists():
        raise ReportError(f"{folder} has neither {HISTORY_NAME} nor {RECORD_NAME}; it is no Flower run's output folder")
    run = Run(f"Flower run {folder.name}", folder)
    if record.exists():
        _read_record(run, record, session)
    if history.exists():
        try:
            content = read_checked(history, Kind.RUN_HISTORY, _parse_history, is_told=False)
            run.settings |= content["config"]
            run.rounds = [_round(entry) for entry in content["rounds"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            previous = previous_of(history)
            can_help = isinstance(error, DamagedError) and previous.exists()
            hint = f"; rename {previous.name}, the one before it, to take its place" if can_help else ""
            reason = str(error) if isinstance(error, OSError | ValueError) else repr(error)
            raise ReportError(f"{history} is no history of a Flower run, or damaged: {reason}{hint}") from None
    run.checkpoints = [_checkpoint(path) for path in folder.glob("round-*.safetensors")]
    run.checkpoints.sort(key=lambda checkpoint: (len(checkpoint.name), checkpoint.name))
    if run.rounds:
        run.committed = max(run.committed, run.rounds[-1].step)
    return run


def _parse_history(data: bytes) -> dict[str, Any]:
    return parse_json(data, Kind.RUN_HISTORY)


def _round(entry: Mapping[str, Any]) -> Round:
    return Round(int(entry["round"]), int(entry["step"]), dict(entry.get("train", {})), dict(entry.get("evaluate", {})))


def _checkpoint(path: Path) -> Checkpoint:
    try:
        about = read_checked(path, Kind.ROUND_WEIGHTS, tensors_metadata, is_told=False)
    except (OSError, ValueError) as error:
        about = {"task": f"damaged: {error}"}
    return Checkpoint(path.name, about.get("step", "?"), about.get("task", "?"), path.stat().st_size)


def _read_record(run: Run, path: Path, session: str | None) -> None:
    record = Record(path, read_only=True)
    try:
        known = record.sessions()
        found = [entry for entry in known if session in (None, entry.name)]
        if not found:
            names = ", ".join(repr(entry.name) for entry in known) or "none"
            raise ReportError(f"{path} has no session {session!r}; it has {names}" if session else f"{path} is empty")
        for entry in found:
            _add_session(run, entry, record.statistics(entry.name), record.steps(entry.name))
    finally:
        record.close()
    run.steps.sort(key=lambda step: step.step)
    run.incidents.sort(key=lambda incident: incident.time_s)


def _add_session(run: Run, entry: SessionRecord, statistics: SessionStatistics, steps: list[StepRecord]) -> None:
    # Bytes are counted for each session; the curve is of all.
    offset = (run.received, run.sent, run.saved)
    run.steps += [
        replace(step, received=step.received + offset[0], sent=step.sent + offset[1], saved=step.saved + offset[2])
        for step in steps
    ]
    run.sessions.append(entry.name)
    run.phase, run.reason = entry.phase.value, entry.reason
    times = [step.time_s for step in steps]
    began_at = statistics.began_at if statistics.began_at is not None else min(times, default=None)
    ended_at = statistics.ended_at if statistics.ended_at is not None else max(times, default=None)
    run.began_at = min((t for t in (run.began_at, began_at) if t is not None), default=None)
    run.ended_at = max((t for t in (run.ended_at, ended_at) if t is not None), default=None)
    run.committed += statistics.steps
    run.run_steps = max(filter(None, (run.run_steps, statistics.run_steps)), default=None)
    run.best = max(filter(None, (run.best, statistics.best)), key=lambda best: best.accuracy, default=None)
    run.averages |= statistics.averages
    run.samples += statistics.samples
    run.received += statistics.received
    run.sent += statistics.sent
    run.saved += statistics.saved
    run.left_out += statistics.left_out
    run.skipped += statistics.skipped
    run.refusals += statistics.refusals
    least_in_sum = entry.settings.least_in_sum if entry.settings.secure_aggregation else 0
    run.privacy = replace(statistics.privacy, least_in_sum=least_in_sum)
    for device in statistics.devices.values():
        _add_device(run, device)
    run.incidents += [*statistics.incidents, *statistics.refused]
    run.tensors = entry.fingerprint or run.tensors
    run.settings |= entry.settings.model_dump(mode="json")
    run.options |= entry.options


def _add_device(run: Run, device: DeviceStatistics) -> None:
    before = run.devices.get(device.device)
    if before is not None:
        device = replace(
            device,
            batches=before.batches + device.batches,
            skipped=before.skipped + device.skipped,
            received=before.received + device.received,
            sent=before.sent + device.sent,
            saved=before.saved + device.saved,
            left_out=before.left_out + device.left_out,
            healings=before.healings + device.healings,
            set_aside=before.set_aside + device.set_aside,
            last_error=device.last_error or before.last_error,
        )
    run.devices[device.device] = device
