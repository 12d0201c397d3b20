import logging

from edgenewton.v1 import exchange_pb2 as pb
from session_events import committed, joined, phase

from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.telemetry.chronicle import TELL_EVERY_S, Chronicle


def test_the_log_says_once_a_minute_how_far_the_run_is(caplog):
    caplog.set_level(logging.INFO)
    chronicle = Chronicle(Session("s", SessionSettings()), publish=lambda event: None, record=None)
    chronicle._tell(joined("a", run_steps=1_000))
    chronicle._tell(phase(pb.PHASE_TRAINING))
    for step in range(130):
        chronicle._tell(committed(step, 1_000.0 + step))
    assert TELL_EVERY_S == 60
    assert caplog.messages == [
        "session 's': step 61 of 1,000, 16 min left, 1.0 batches/s",
        "session 's': step 121 of 1,000, 15 min left, 1.0 batches/s",
    ]
