"""Devices of a session under masks come, go and are started again at any point: it goes on, or says why it does not."""

from collections import deque

import numpy as np
import pytest
from edgenewton.secure_aggregation.contribution_form import NUMBERS_STREAM, Totals, key_hint, stream_of
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import CODEC_NUMBERS
from edgenewton.v1.framing import Layout
from edgenewton.v1.tensor_spec import TensorSpec
from hypothesis import given
from hypothesis import strategies as st

from coordinator.serving.masking_mail import MaskingMail
from coordinator.session import decisions as d
from coordinator.session.members import Joining
from coordinator.session.refusal import RefusedError
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.session.step import Contribution
from edge_client.exchange.remote.masking import Channels, Masking

SPECS = (TensorSpec("w", (4,)),)
NAMES = ("a", "b", "c", "d")
LEASE_S, STEP_DEADLINE_S, REJOIN_DEADLINE_S = 4.0, 10.0, 600.0
QUIET_S = 2 * STEP_DEADLINE_S + LEASE_S
"""In which a session whose devices are all there goes on."""


class Device:
    """One that contributes its samples' number of ones to each step."""

    def __init__(self, name: str, fleet: "Fleet") -> None:
        self.name, self._fleet = name, fleet
        self.mail: deque[bytes] = deque()
        self.channels = Channels("s", name)
        choice = fleet.settings.codec_choice
        layout = Layout(SPECS, choice.masked_policy(), fleet.settings.frame_bytes)
        self.masking = Masking(self.channels, layout, fleet.settings.to_proto().secure_aggregation)
        self.token = ""

    def join(self) -> None:
        """Take the place, or take it again on another stream: what was on its way is lost."""
        self.mail.clear()
        fleet = self._fleet
        joining = Joining(
            self.name,
            SPECS,
            {},
            b"same",
            codecs=CODEC_NUMBERS.values(),
            next_step=fleet.session.step.number,
            token=self.token,
            channel_key=self.channels.key,
        )
        self.token = fleet.session.join(joining, fleet.now, fleet.session.step.number).token
        fleet.session.members.connected(self.name, fleet.now)

    def read_one(self) -> None:
        """Take the next message in, and say what is to be said."""
        if not self.mail:
            return
        self._fleet.session.begin(self.name, self._fleet.session.step.number, self._fleet.now)
        frame, session, now = pb.Frame.FromString(self.mail.popleft()), self._fleet.session, self._fleet.now
        said = self.masking.answer(frame)
        if said is not None and said.HasField("step_keys"):
            session.take_keys(self.name, said.step, said.step_keys, now)
        if said is not None and said.HasField("revealed"):
            session.take_revealed(self.name, said.step, said.revealed, now)
        self._fleet.carry_out()
        ready = self.masking.take_ready(session.step.number)
        if ready is not None:
            self._contribute(ready, session, now)
            self._fleet.carry_out()

    def _contribute(self, ready, session, now) -> None:
        step, masks = ready.step, ready.masks
        if not session.masking.is_masked_with(self.name, key_hint(masks.keys.public)):
            return
        (piece,) = self.masking.layout.slices(0)
        how = ready.form.of(piece)
        values = how.encode(np.full(piece.length, 2.0, np.float32)).integers
        if session.wants(self.name, step, 1, piece.key, now):
            session.contribute(self.name, 1, piece.key, masks.mask(stream_of(piece.key), values, how.sum_bits))
        numbers = ready.form.numbers
        of = numbers.encode(Totals(2, 1.0, None, np.zeros(1)).to_vector()).integers
        masked = masks.mask(NUMBERS_STREAM, of, numbers.sum_bits)
        session.complete(self.name, step, Contribution(1, 0.0, numbers=masked), now)
        session.advance(now)


class Fleet:
    """A session and its devices, of which those are here that have not crashed."""

    def __init__(self, quorum: int) -> None:
        self.now = 0.0
        self.settings = SessionSettings(
            devices=len(NAMES),
            quorum=quorum,
            secure_aggregation=True,
            digest_every=0,
            lease_s=LEASE_S,
            heartbeat_s=1.0,
            step_deadline_s=STEP_DEADLINE_S,
            rejoin_deadline_s=REJOIN_DEADLINE_S,
        )
        self.session = Session("s", self.settings)
        self._mail = MaskingMail(self)
        self.here: dict[str, Device] = {}
        self.means: list[tuple[int, float]] = []
        """Of each step: how many devices are behind it, and what the first element became."""
        self._mean = np.nan
        for name in NAMES:
            self.come(name)

    def send(self, name: str, data: bytes) -> None:
        if name in self.here:
            self.here[name].mail.append(data)

    def come(self, name: str) -> None:
        """Let a device begin anew, with keys of its own."""
        if name not in self.here:
            self.here[name] = Device(name, self)
            self.again(name)

    def again(self, name: str) -> None:
        if name in self.here:
            try:
                self.here[name].join()
            except RefusedError:  # the session is over
                assert self.session.is_over
            self.carry_out()

    def crash(self, name: str) -> None:
        """Let a device be gone; its stream breaks, and its lease ends in a while."""
        if self.here.pop(name, None) is not None:
            self.session.members.disconnected(name, self.now)

    def leave(self, name: str) -> None:
        if self.here.pop(name, None) is not None:
            self.session.remove(name, "it was stopped", self.now)
            self.carry_out()

    def read(self, name: str) -> None:
        if name in self.here:
            try:
                self.here[name].read_one()
            except RefusedError as error:
                self.session.remove(name, error.reason, self.now)
                raise AssertionError(f"an honest device is refused: {error.reason}") from error

    def wait(self, seconds: float) -> None:
        """Let time pass, in which those that are here give signs of life."""
        for _ in range(round(2 * seconds)):
            self.now += 0.5
            for name in self.here:
                self.session.members.heard(name, self.now)
            self.session.tick(self.now)
            self.carry_out()

    def carry_out(self) -> None:
        while taken := self.session.take_decisions():
            for decision in taken:
                self._mail.send(decision)
                match decision:
                    case d.StepClosing(_, combine):
                        self.session.combined(combine(), self.now)
                    case d.SliceReady(values=values):
                        self._mean = float(values[0])
                    case d.StepCommitted(devices=devices):
                        self.means.append((devices, self._mean))

    def go_on(self, steps: int) -> None:
        """Let all be here and say what they have to say, until so many steps are taken."""
        for name in NAMES:
            self.come(name)
        aim, deadline = len(self.means) + steps, self.now + steps * QUIET_S
        while len(self.means) < aim and not self.session.is_over:
            if not any(self.read_all() for _ in range(20)):
                self.wait(0.5)
            assert self.now < deadline, "it waits for ever"

    def read_all(self) -> bool:
        busy = [name for name, device in self.here.items() if device.mail]
        for name in busy:
            self.read(name)
        return bool(busy)


NAME = st.sampled_from(NAMES)
ACTS = st.one_of(
    *(st.tuples(st.just(what), NAME) for what in ("read", "read", "read", "crash", "leave", "come", "again")),
    st.tuples(st.just("wait"), st.sampled_from([0.5, LEASE_S, STEP_DEADLINE_S])),
)


@given(st.sampled_from([2, 3, 4]), st.lists(ACTS, max_size=60))
def test_it_goes_on_once_all_are_back(quorum, acts):
    fleet = Fleet(quorum)
    for what, whom in acts:
        getattr(fleet, what)(whom)
    fleet.go_on(3)
    assert not fleet.session.is_over, fleet.session.reason
    assert fleet.means[-1][0] == len(NAMES)
    for devices, mean in fleet.means:
        assert devices == 0 or (devices >= quorum and mean == pytest.approx(1.0, abs=0.1))


@pytest.mark.parametrize("keys", range(len(NAMES)))
def test_devices_that_are_all_started_again_while_keys_are_wanted_are_asked_anew(keys):
    fleet = Fleet(len(NAMES))
    for name in NAMES[:keys]:
        fleet.read(name)
    for name in NAMES:
        fleet.crash(name)
    fleet.wait(LEASE_S)
    assert not fleet.session.members
    fleet.go_on(1)
    assert fleet.means == [(len(NAMES), pytest.approx(1.0, abs=0.1))]


def test_a_device_that_is_away_for_longer_than_a_step_may_take_is_waited_for():
    fleet = Fleet(len(NAMES))
    fleet.read("a")
    fleet.leave("b")
    fleet.wait(2 * STEP_DEADLINE_S)
    fleet.go_on(1)
    assert fleet.means == [(len(NAMES), pytest.approx(1.0, abs=0.1))]
