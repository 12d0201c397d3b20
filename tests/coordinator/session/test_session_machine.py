"""Random interleavings of join, contribute, drop, deadline, crash and resume: the invariants of the session hold."""

import math

import numpy as np
from edgenewton.v1.framing import SliceKey
from edgenewton.v1.tensor_spec import TensorSpec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.serving.broadcast import BroadcastLog
from coordinator.session import decisions as d
from coordinator.session.members import Joining, Standing
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.session.step import Contribution

SPECS = (TensorSpec("w", (2,)), TensorSpec("b", (1,)))
KEYS = (SliceKey(0, 0), SliceKey(1, 0))
NAMES = ("a", "b", "c")
names = st.sampled_from(NAMES)
SETTINGS = SessionSettings(
    devices=3, quorum=2, step_deadline_s=5, lease_s=20, heartbeat_s=5, rejoin_deadline_s=1_000, join_deadline_s=1_000
)


class Model:
    """A device as it should be: its state is the steps that it has applied, and what each of them gave."""

    def __init__(self) -> None:
        self.history: list[float] = []
        self.position: int | None = None
        self.is_member = False
        self.token = ""
        self.sent: set[int] = set()
        self.means: dict[int, float] = {}


class SessionMachine(RuleBasedStateMachine):
    session_settings = SETTINGS

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.devices = {name: Model() for name in NAMES}
        self.committed: dict[int, float] = {}
        self.reported: dict[str, int] = {}
        """Samples of the devices that have completed the step that is on."""
        self.open(Session("s", self.session_settings))

    def open(self, session: Session) -> None:
        self.session = session
        self.log = BroadcastLog(0, session.step.number)
        self.values: dict[int, list[tuple[int, float]]] = {}

    # ---------------------------------------------------------------- what the room does

    def carry_out(self) -> None:
        means: dict[SliceKey, float] = {}
        decisions = self.session.take_decisions()
        self.check(decisions)
        for decision in decisions:
            match decision:
                case d.SliceReady(step, key, values):
                    assert step == self.session.step.number or step == self.session.step.number - 1
                    means[key] = float(values[0])
                    self.log.append(f"{step} {key.tensor} {float(values[0])!r}".encode())
                case d.DeviceReported(device, _, contribution):
                    self.reported.setdefault(device, contribution.weight)
                case d.StepCommitted():
                    assert len(self.reported) >= self.session_settings.required
                    assert decision.devices == sum(samples > 0 for samples in self.reported.values())
                    assert decision.samples == sum(self.reported.values())
                    assert math.isnan(decision.loss) == (decision.samples == 0)
                    self.reported.clear()
                    self.log.append(f"{decision.step} commit".encode())
                    self.log.begin_step(decision.step + 1)
                case d.StepSet(step):
                    self.reported.clear()
                    self.log.restart(step)
                case d.DeviceRemoved(device):
                    self.devices[device].is_member = False
                    self.devices[device].position = None
                case d.DeviceHealing(device, must_be_told=True):
                    self.devices[device].position = None
                case d.PhaseChanged(phase):
                    assert phase is d.Phase.TRAINING

    def check(self, decisions: list[d.Decision]) -> None:
        """Hold what is decided together against what must hold of it."""

    def receive(self, name: str) -> None:
        """Let a device read all that there is for it, and apply the steps that committed."""
        device = self.devices[name]
        if device.position is None:
            return
        means = device.means
        while True:
            try:
                frame = self.log.read(device.position)
            except LookupError:
                self.session.remove(name, "reads too slowly", self.now)
                self.carry_out()
                return
            if frame is None:
                break
            device.position += 1
            step, what, *value = frame.data.decode().split()
            if what != "commit":
                means[int(what)] = float(value[0])
                continue
            assert int(step) == len(device.history), "a step was skipped or came twice"
            assert means.keys() == {0, 1}, "a step was committed without its means"
            device.history.append(means.pop(0))
            means.clear()
            device.sent.clear()

    # ---------------------------------------------------------------- what happens

    @rule(name=names, forgets=st.booleans())
    def join(self, name: str, forgets: bool) -> None:
        device = self.devices[name]
        if device.is_member and not forgets:
            self.receive(name)
        if device.is_member and name not in self.session.members:
            device.is_member = False
        if forgets:
            # Its process was restarted: it has the state that it saved some steps ago.
            device.history = device.history[: len(device.history) // 2]
            device.token = ""
        device.sent.clear()
        device.means.clear()
        joining = Joining(name, SPECS, {}, b"", next_step=len(device.history), token=device.token)
        self.session.members.disconnected(name, self.now)
        member = self.session.join(joining, self.now, self.log.oldest_step)
        self.session.members.connected(name, self.now)
        self.carry_out()
        device.is_member, device.token = True, member.token
        device.position = None
        if self.session.members[name].standing is not Standing.HEALING:
            device.position = self.log.position_of(len(device.history))
            assert device.position is not None

    @rule(name=names)
    def heal(self, name: str) -> None:
        donors = self.session.members.standing(Standing.ACTIVE)
        if name not in self.session.members.standing(Standing.HEALING) or not donors:
            return
        self.receive(donors[0])
        if donors[0] not in self.session.members:
            return
        history = self.devices[donors[0]].history
        position = self.log.position_of(len(history))
        if position is None:
            return
        self.devices[name].history = list(history)
        self.devices[name].position = position
        self.devices[name].sent.clear()
        self.devices[name].means.clear()
        self.session.healed(name, len(history))

    @rule(name=names, tensor=st.sampled_from([0, 1]), value=st.integers(-9, 9), samples=st.sampled_from([None, 1, 4]))
    def contribute(self, name: str, tensor: int, value: int, samples: int | None) -> None:
        device = self.devices[name]
        if not device.is_member or device.position is None or tensor in device.sent:
            return
        step, member = len(device.history), self.session.members[name]
        if samples is not None and member.samples is not None:
            samples = member.samples or None  # a batch that is skipped stays so
        device.sent.add(tensor)
        if self.session.wants(name, step, samples, KEYS[tensor], self.now):
            self.session.contribute(name, samples, KEYS[tensor], np.full(SPECS[tensor].size, value, np.float32))
        if device.sent == {0, 1}:
            self.session.complete(name, step, Contribution(samples, 0.0), self.now)
        self.session.advance(self.now)
        self.carry_out()

    @initialize()
    def everybody_joins(self) -> None:
        for name in NAMES:
            self.join(name, forgets=False)

    @rule(order=st.permutations(NAMES), count=st.integers(1, 3))
    def go_on(self, order: list[str], count: int) -> None:
        """Some devices read what there is for them, heal, and contribute all that they have."""
        for name in order[:count]:
            if not self.devices[name].is_member:
                self.join(name, forgets=False)
            self.heal(name)
            self.receive(name)
            for tensor in (0, 1):
                self.contribute(name, tensor, len(name) + tensor, 1)

    @rule(name=names)
    def read(self, name: str) -> None:
        self.receive(name)

    @rule(name=names)
    def drop(self, name: str) -> None:
        self.session.members.disconnected(name, self.now)

    @rule(seconds=st.sampled_from([1.0, 6.0, 21.0]), alive=st.sets(names))
    def wait(self, seconds: float, alive: set[str]) -> None:
        self.now += seconds
        for name in alive:
            self.session.members.heard(name, self.now)
        self.session.tick(self.now)
        self.carry_out()

    @precondition(lambda self: self.session.phase is d.Phase.TRAINING)
    @rule()
    def crash_and_resume(self) -> None:
        for name in NAMES:
            # What is in the sockets is lost; a device knows what it has applied.
            self.devices[name].position = None
            self.devices[name].is_member = False
            self.devices[name].sent.clear()
            self.devices[name].means.clear()
        session = Session("s", self.session_settings)
        self.reported.clear()
        session.restore(self.session.admission, self.session.step.number, list(NAMES))
        self.open(session)

    # ---------------------------------------------------------------- what must hold

    @invariant()
    def devices_that_applied_a_step_applied_the_same(self) -> None:
        members = [self.devices[name] for name in self.session.members.standing(Standing.ACTIVE, Standing.LAGGING)]
        for step in range(min((len(member.history) for member in members), default=0)):
            assert len({member.history[step] for member in members}) == 1

    @invariant()
    def nobody_is_ahead_of_the_session(self) -> None:
        for name in self.session.members.standing(Standing.ACTIVE, Standing.LAGGING):
            assert len(self.devices[name].history) <= self.session.step.number

    @invariant()
    def the_log_keeps_two_steps_and_no_more(self) -> None:
        assert self.log.oldest_step >= self.session.step.number - 1


class PerStepMachine(SessionMachine):
    """The same, but nothing leaves before it is certain that the step commits."""

    session_settings = SETTINGS.model_copy(update={"release": "step"})

    def check(self, decisions: list[d.Decision]) -> None:
        steps = [decision.step for decision in decisions if isinstance(decision, d.SliceReady)]
        committed = [decision.step for decision in decisions if isinstance(decision, d.StepCommitted)]
        assert set(steps) == set(committed)
        assert len(steps) == len(KEYS) * len(committed)


SessionMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
PerStepMachine.TestCase.settings = SessionMachine.TestCase.settings
TestSessionMachine = SessionMachine.TestCase
TestPerStepMachine = PerStepMachine.TestCase
