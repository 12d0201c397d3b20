"""What people want to know of a session: plain Python, fed with the session's events in their order.

The page, the metrics, the terminal and the record all read it. Memory is bounded: curves are thinned, and of devices
that are gone and of things that happened only the latest are kept.
"""

import math
from collections import Counter, deque
from dataclasses import dataclass, field

from edgenewton.common.progress import Best, Pace, better, progress_text
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import form_from_proto
from edgenewton.v1.privacy_mode import PrivacyMode
from edgenewton.v1.privacy_options import AgreedBudget

from coordinator.session.cadence import FIRST_FORM
from coordinator.telemetry.announcement import PHASES
from coordinator.telemetry.curve import Curve

MAX_GONE = 500
"""So many devices that are gone are kept."""
MAX_INCIDENTS = 200
MAX_REFUSED = 50
MAX_TEXT = 300
"""Characters of a text that came from a device."""
STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets that steps are counted in."""
RATE_S = 5.0
"""Seconds over which a link's rate is smoothed; after so many without a report it counts as idle."""

_PHASE_NAMES = {number: phase.value for phase, number in PHASES.items()}


@dataclass
class DeviceStatistics:
    """One device, over all its memberships."""

    device: str
    state: str = "joined"
    """joined, training, healing, finished or gone."""
    software: str = ""
    training_samples: int = 0
    run_steps: int | None = None
    """Steps of the whole run; None if it did not say."""
    averages: bool = False
    """Whether it evaluates averaged weights."""
    step: int | None = None
    """The last one that it contributed to."""
    batches: int = 0
    skipped: int = 0
    """Batches that it skipped, because they could not be used; they are not among the others."""
    loss: float | None = None
    epsilon: float | None = None
    """What its data have cost of a privacy budget so far, as it says; None without one."""
    lag_s: float = 0.0
    """Seconds behind the first device in that step."""
    received: int = 0
    """Bytes from the device, in all."""
    sent: int = 0
    saved: int = 0
    received_per_s: float = 0.0
    sent_per_s: float = 0.0
    left_out: int = 0
    """Steps that were committed without it."""
    healings: int = 0
    set_aside: int = 0
    """How often steps were to go on without it for a time, because it was late repeatedly."""
    set_aside_until: float | None = None
    """When they wait for it again; None if they do now."""
    unlike: int = 0
    """Steps in which it sent something unlike the others, as far as it was told: the 1st, 2nd, 4th, ... time."""
    last_error: str = ""
    last_error_at: float | None = None
    joined_at: float = 0.0
    seen_at: float = 0.0
    """When it joined, contributed, or left; seconds since the Unix epoch, as all times here."""
    _counted: tuple[int, int, int] = (0, 0, 0)
    """What its present membership has exchanged so far."""

    def set_aside_s(self, now: float) -> float:
        """Return for how many seconds steps go on without it, because it was late repeatedly."""
        return 0.0 if self.set_aside_until is None else max(0.0, self.set_aside_until - now)

    @property
    def is_gone(self) -> bool:
        """Whether it has no place now."""
        return self.state in ("finished", "gone")

    def rates(self, now: float) -> tuple[float, float]:
        """Return bytes per second from and to it, smoothed; none once it is idle."""
        return (self.received_per_s, self.sent_per_s) if now < self.seen_at + RATE_S else (0.0, 0.0)

    def count(self, received: int, sent: int, saved: int, now: float) -> None:
        """Take in what its present membership has exchanged so far."""
        before = self._counted if received >= self._counted[0] else (0, 0, 0)
        new = (received - before[0], sent - before[1], saved - before[2])
        self._counted = (received, sent, saved)
        self.received += new[0]
        self.sent += new[1]
        self.saved += new[2]
        seconds = now - self.seen_at
        if seconds > 0:
            weight = 1 - math.exp(-seconds / RATE_S)
            self.received_per_s += weight * (new[0] / seconds - self.received_per_s)
            self.sent_per_s += weight * (new[1] / seconds - self.sent_per_s)
        self.seen_at = now

    def end_membership(self) -> None:
        """Let the next membership count from nothing."""
        self._counted = (0, 0, 0)

    def fail(self, reason: str, now: float) -> None:
        """Note what went wrong with it."""
        self.last_error, self.last_error_at = reason[:MAX_TEXT], now


@dataclass(frozen=True)
class Incident:
    """Something out of the ordinary."""

    time_s: float
    kind: str
    """joined, left, healing, recovered, left out, refused, unlike, cadence, record or phase."""
    step: int | None
    device: str
    text: str


@dataclass
class Curves:
    """Quantities over the steps."""

    loss: Curve = field(default_factory=Curve)
    accuracy: Curve = field(default_factory=Curve)
    seconds: Curve = field(default_factory=Curve)
    wire: Curve = field(default_factory=Curve)
    """Bytes exchanged with all devices so far."""
    float32: Curve = field(default_factory=Curve)
    """What they would be if all tensors travelled in float32."""

    def add(self, step: int, loss: float | None, accuracy: float | None, seconds: float, wire: int, saved: int) -> None:
        """Add a committed step."""
        if loss is not None:
            self.loss.add(step, loss)
        if accuracy is not None:
            self.accuracy.add(step, accuracy)
        self.seconds.add(step, seconds)
        self.wire.add(step, wire)
        self.float32.add(step, wire + saved)


@dataclass
class SessionStatistics:
    """One session; feed it events with `apply`."""

    name: str
    codec: str = ""
    least_in_sum: int = 0
    """So many devices are in each sum at least if they mask what they send; 0 if they do not."""
    budget: AgreedBudget | None = None
    """Of the devices' privacy, if they have one: none of them tells its loss then."""
    phase: str = "gathering"
    reason: str = ""
    began_at: float | None = None
    ended_at: float | None = None
    step: int | None = None
    """The last one that was committed."""
    steps: int = 0
    every: int = 1
    """Batches of each device in the last step."""
    cadence: str = ""
    """Why there are to be so many batches in the next step, if the session chooses that."""
    form: str = ""
    """In which form moves are written from the next step on, if the session chooses that."""
    samples: int = 0
    left_out: int = 0
    set_aside: int = 0
    """How often steps were to go on without a device for a time."""
    skipped: int = 0
    """Batches that devices skipped."""
    step_seconds: float = 0.0
    """All steps' seconds together."""
    step_buckets: list[int] = field(default_factory=lambda: [0] * (len(STEP_SECONDS) + 1))
    received: int = 0
    sent: int = 0
    saved: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    """By gRPC status."""
    devices: dict[str, DeviceStatistics] = field(default_factory=dict)
    incidents: deque[Incident] = field(default_factory=lambda: deque(maxlen=MAX_INCIDENTS))
    refused: deque[Incident] = field(default_factory=lambda: deque(maxlen=MAX_REFUSED))
    """Apart, so that whoever is refused a thousand times hides nothing else."""
    curves: Curves = field(default_factory=Curves)
    best: Best | None = None
    """The best accuracy of all steps, also of those that are in no curve any more."""
    pace: Pace = field(default_factory=Pace)
    """Of the batches of each device."""
    _first_report: tuple[int, float] = (-1, 0.0)

    def apply(self, event: pb.SessionEvent) -> None:
        """Take one event in."""
        now = event.time_s
        match event.WhichOneof("event"):
            case "phase":
                self._apply_phase(event.phase, now)
            case "joined":
                self._apply_joined(event.joined, now)
            case "report":
                self._apply_report(event.report, now)
            case "step":
                self._apply_step(event.step, now)
            case "left":
                self._apply_left(event.left, now)
            case "healing":
                device = self._device(event.healing.device)
                device.state = "healing"
                device.healings += 1
                if event.healing.wait_s:
                    self.set_aside += 1
                    device.set_aside += 1
                    device.set_aside_until = now + event.healing.wait_s
                self._happened(now, "healing", device.device, event.healing.reason, event.healing.step)
            case "recovered":
                device = self._device(event.recovered.device)
                device.state, device.set_aside_until = "training", None
                self._happened(now, "recovered", device.device, "takes part again", event.recovered.step)
            case "unlike":
                self._apply_unlike(event.unlike, now)

    def refuse(self, device: str, status: str, reason: str, now: float) -> None:
        """Note that a request of a device was refused; it need not be one of the session."""
        self.refusals[status] += 1
        if device in self.devices:
            self.devices[device].fail(reason, now)
        self.refused.append(Incident(now, "refused", self.step, device[:MAX_TEXT], f"{status}: {reason}"[:MAX_TEXT]))

    def note(self, now: float, text: str) -> None:
        """Note what happened to the record."""
        self._happened(now, "record", "", text)

    @property
    def done(self) -> int:
        """Batches of each device, from the run's beginning on."""
        done = 0 if self.step is None else self.step + 1
        # Averages of buffers are steps, too.
        return done if self.run_steps is None else min(done, self.run_steps)

    @property
    def run_steps(self) -> int | None:
        """Steps of the whole run; None if no device says.

        The devices that are there count, if any of them says; of several numbers the largest.
        """
        told = [(not device.is_gone, device.run_steps) for device in list(self.devices.values()) if device.run_steps]
        return max(told)[1] if told else None

    @property
    def is_masked(self) -> bool:
        """Whether its devices mask what they send: their own losses are not known."""
        return self.least_in_sum > 0

    @property
    def epsilon(self) -> float | None:
        """What was spent of the privacy budget; None without one, or if no device says.

        It is the same for all devices, but for one that had to pay twice: that of the device that has spent most. Those
        that are there count, if any of them says.
        """
        if self.budget is None:
            return None
        told = [(not d.is_gone, d.epsilon) for d in list(self.devices.values()) if d.epsilon is not None]
        return max(told)[1] if told else None

    @property
    def privacy(self) -> PrivacyMode:
        """What the devices are promised."""
        return PrivacyMode(self.least_in_sum, self.budget, self.epsilon)

    @property
    def averages(self) -> bool:
        """Whether accuracies are those of averaged weights."""
        return any(device.averages for device in list(self.devices.values()))

    def batches_per_s(self, now: float) -> float | None:
        """Return each device's batches per second; None while that is not known, in a pause, and at the end."""
        return self.pace.per_s(now) if self.ended_at is None else None

    def progress(self, now: float) -> str:
        """Return how far the run is, in words."""
        return progress_text(self.done, self.run_steps, self.batches_per_s(now), self.best)

    def try_model(self, step: int, accuracy: float | None) -> None:
        """Take note of the accuracy before a step, if the model was tried."""
        if accuracy is not None:
            self.best = better(self.best, step, accuracy)

    # ------------------------------------------------------------------ inner workings

    def _apply_phase(self, phase: pb.PhaseChanged, now: float) -> None:
        self.phase, self.reason = _PHASE_NAMES.get(phase.phase, "unknown"), phase.reason
        self.codec = pb.Codec.Name(phase.settings.codec).removeprefix("CODEC_").lower()
        is_masked = phase.settings.HasField("secure_aggregation")
        self.least_in_sum = max(2, phase.settings.secure_aggregation.least) if is_masked else 0
        self.ended_at = now if self.phase in ("ended", "aborted") else None
        if self.phase == "training" and self.began_at is None:
            self.began_at = now
        self._happened(now, "phase", "", f"{self.phase}: {self.reason}")

    def _apply_joined(self, joined: pb.DeviceJoined, now: float) -> None:
        device = self._device(joined.device)
        device.state, device.training_samples = "joined", joined.training_samples
        device.software = joined.software[:MAX_TEXT]
        device.run_steps = joined.run_steps if joined.HasField("run_steps") else None
        device.averages = joined.averages
        told = joined.budget
        is_private = joined.HasField("budget")
        self.budget = AgreedBudget(told.epsilon, told.delta, told.unit[:MAX_TEXT]) if is_private else None
        if not is_private:
            device.epsilon = None  # it was that of another run
        device.joined_at = device.seen_at = now
        self._happened(now, "joined", joined.device, joined.software)

    def _apply_report(self, report: pb.DeviceReport, now: float) -> None:
        device = self._device(report.device)
        device.state, device.step = "training", report.step
        if report.skipped:
            device.skipped += 1
            self.skipped += 1
            device.fail(f"skipped its batch of step {report.step}: it could not be used", now)
        else:
            device.batches += report.contribution.batches or 1
            device.loss = _finite(report.contribution.loss)
        if report.contribution.HasField("epsilon"):
            device.epsilon = report.contribution.epsilon
        if report.step != self._first_report[0]:
            self._first_report = (report.step, now)
        device.lag_s = max(0.0, now - self._first_report[1])
        self._count(device, report, now)

    def _apply_step(self, step: pb.StepCommitted, now: float) -> None:
        self.step = step.step
        self.steps += 1
        self._apply_cadence(step.commit, now)
        self.samples += step.commit.samples
        self.pace.add(self.every, now)
        self.step_seconds += step.seconds
        self.step_buckets[next((i for i, s in enumerate(STEP_SECONDS) if step.seconds <= s), len(STEP_SECONDS))] += 1
        self.left_out += len(step.commit.left_out)
        for name in step.commit.left_out:
            device = self._device(name)
            device.left_out += 1
            if not device.is_gone:  # else it is known why
                device.fail(f"not in time for step {step.step}", now)
            self._happened(now, "left out", name, "was not in time", step.step)
        evaluation = step.evaluation
        accuracy = evaluation.correct / evaluation.samples if evaluation.samples else None
        self.try_model(step.step, accuracy)
        self.curves.add(
            step.step, _finite(step.commit.loss), accuracy, step.seconds, self.received + self.sent, self.saved
        )

    def _apply_cadence(self, commit: pb.Commit, now: float) -> None:
        self.every = commit.batches or 1
        self.cadence = commit.cadence.reason[:MAX_TEXT]
        chosen, form = commit.cadence.batches, form_from_proto(commit.cadence.form)
        is_other_form = form is not None and form != (self.form or FIRST_FORM)
        if chosen and (chosen != self.every or is_other_form):
            batches = "batch" if chosen == 1 else f"{chosen} batches"
            how = f" in {form}" if is_other_form else ""
            self._happened(now, "cadence", "", f"exchanges{how} after every {batches} from now on: {self.cadence}")
        self.form = form or self.form

    def _apply_left(self, left: pb.DeviceLeft, now: float) -> None:
        device = self._device(left.device)
        self._count(device, left, now)
        device.end_membership()
        is_failure = left.status not in ("", "OK")
        device.state = "finished" if left.reason == "finished" else "gone"
        if is_failure:
            device.fail(left.reason, now)
        if device.state == "gone":
            self._happened(now, "left", left.device, left.reason)
        self._forget_oldest()

    def _apply_unlike(self, unlike: pb.DeviceUnlike, now: float) -> None:
        device = self._device(unlike.device)
        device.unlike = unlike.times
        often = f" ({unlike.times} times so far)" if unlike.times > 1 else ""
        device.fail(f"step {unlike.step}: {unlike.reason}{often}", now)
        self._happened(now, "unlike", unlike.device, unlike.reason + often, unlike.step)

    def _count(self, device: DeviceStatistics, use: pb.DeviceReport | pb.DeviceLeft, now: float) -> None:
        before = (device.received, device.sent, device.saved)
        device.count(use.bytes_received, use.bytes_sent, use.bytes_saved, now)
        self.received += device.received - before[0]
        self.sent += device.sent - before[1]
        self.saved += device.saved - before[2]

    def _device(self, name: str) -> DeviceStatistics:
        if name not in self.devices:
            self.devices[name] = DeviceStatistics(name)
        return self.devices[name]

    def _forget_oldest(self) -> None:
        gone = sorted((d for d in self.devices.values() if d.is_gone), key=lambda d: d.seen_at)
        for device in gone[: max(0, len(gone) - MAX_GONE)]:
            del self.devices[device.device]

    def _happened(self, now: float, kind: str, device: str, text: str, step: int | None = None) -> None:
        at = self.step if step is None else step
        self.incidents.append(Incident(now, kind, at, device[:MAX_TEXT], text[:MAX_TEXT]))


def _finite(value: float) -> float | None:
    """Return a number that a device reported, unless it is none."""
    return value if math.isfinite(value) else None
