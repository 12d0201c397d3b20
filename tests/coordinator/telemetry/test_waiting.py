"""Which waits people are told of."""

import pytest
from edgenewton.v1 import exchange_pb2 as pb
from session_events import committed, joined, phase

from coordinator.session.decisions import Phase
from coordinator.session.members import Joining
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.session.wait import Wait
from coordinator.telemetry.statistics import SessionStatistics
from coordinator.telemetry.waiting import Waiting, silent_s, waiting


class Waits(Session):
    """A session of which the wait is given."""

    def __init__(self, wait, phase=Phase.TRAINING):
        super().__init__("s", SessionSettings())
        self._state.phase = phase
        self._given = wait

    @property
    def wait(self):
        return self._given


def statistics(every_s=None):
    """Return those of a session whose last step was at 100 s, `every_s` after the one before."""
    statistics = SessionStatistics("s")
    for event in (joined("a"), phase(pb.PHASE_TRAINING, 1.0)):
        statistics.apply(event)
    for step in range(20) if every_s else ():
        statistics.apply(committed(step, 100.0 - (19 - step) * every_s))
    return statistics


@pytest.mark.parametrize(("seconds", "is_told"), [(0.9, False), (1.0, True), (70.0, True)])
def test_who_holds_others_up_is_told_after_a_second(seconds, is_told):
    told = waiting(Waits(Wait(("b",), 50.0)), statistics(), 100.0, 50.0 + seconds)
    assert told == (Waiting(("b",), 0, pytest.approx(seconds)) if is_told else None)


@pytest.mark.parametrize(
    ("every_s", "seconds", "is_told"),
    [
        (0.2, 1.9, False),
        (0.2, 2.1, True),
        (4.0, 11.0, False),
        (4.0, 13.0, True),
        (None, 14.0, False),
        (None, 16.0, True),
    ],
)
def test_that_nothing_comes_is_told_when_it_is_unusual(every_s, seconds, is_told):
    wait = Wait(("a", "b"), 50.0, is_held_up=False)
    told = waiting(Waits(wait), statistics(every_s), 100.0 + seconds, 50.0 + seconds)
    assert (told is not None) == is_told


def test_before_the_first_step_every_wait_is_told():
    wait = Waits(Wait((), None, 4), Phase.GATHERING)
    assert waiting(wait, statistics(), 100.0, 50.0) == Waiting((), 4, None)


def test_whoever_misses_two_signs_of_life_is_silent():
    session = Session("s", SessionSettings(heartbeat_s=3, devices=1))
    assert silent_s(session, "nobody", 9.0) == 0
    session.join(Joining("a", (), {}, b""), 10.0)
    assert silent_s(session, "a", 15.9) == 0
    assert silent_s(session, "a", 17.0) == 7.0
