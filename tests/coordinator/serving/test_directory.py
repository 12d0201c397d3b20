"""The directory: which sessions there are, in which order, and what becomes of those that are over. No network."""

import pytest
from bare_client import SPEC

from coordinator.serving.directory import MAX_FINISHED, Directory
from coordinator.session.decisions import Phase
from coordinator.session.members import Joining
from coordinator.session.refusal import RefusedError, Status
from coordinator.session.settings import SessionSettings
from coordinator.session.step import Contribution
from coordinator.telemetry.record import Record

ONE = SessionSettings(devices=1)


def names(directory: Directory) -> list[str]:
    return [room.session.name for room in directory.rooms]


def join(directory: Directory, session: str, device: str, now: float = 0.0):
    return directory.find(session).join(Joining(device, (SPEC,), {}, b""), now)


def test_a_running_session_keeps_its_name_and_one_that_is_over_gives_it_up():
    directory = Directory()
    first = directory.create("s", ONE)
    directory.create("t", ONE)
    with pytest.raises(RefusedError, match="is running already") as refused:
        directory.create("s", ONE)
    assert refused.value.status is Status.ALREADY_EXISTS
    directory.abort("s", "enough")
    second = directory.create("s", ONE)
    assert second is not first
    assert directory.find("s").session is second
    assert names(directory) == ["t", "s"]
    with pytest.raises(ValueError, match="needs a name"):
        directory.create("", ONE)


def test_the_oldest_finished_sessions_are_forgotten_and_running_ones_never():
    directory = Directory()
    directory.create("running", ONE)
    for number in range(MAX_FINISHED + 5):
        directory.create(f"s{number}", ONE)
        directory.abort(f"s{number}", "enough")
    assert names(directory) == ["running", *(f"s{number}" for number in range(5, MAX_FINISHED + 5))]
    assert directory.get("s4") is None
    with pytest.raises(RefusedError, match="sessions on this coordinator: 'running'$"):
        directory.find("s4")


def test_a_token_leads_to_its_device_and_room_also_once_the_session_is_over():
    directory = Directory()
    for name in ("s", "t"):
        directory.create(name, ONE)
    member = join(directory, "t", "a")
    directory.abort("t", "enough")
    assert directory.find_by_token(member.token) == (directory.find("t"), "a")
    assert directory.find_by_token("guess") is None


def test_what_happens_in_any_session_is_among_the_events_of_all():
    directory = Directory()
    seen = []
    directory.gate.audit.apply = lambda event: seen.append((event.session, event.WhichOneof("event")))
    for name in ("s", "t"):
        directory.create(name, ONE)
        join(directory, name, "a")
    directory.abort_all("over")
    of_one = ["phase", "joined", "phase"]
    assert seen == [(name, kind) for name in "st" for kind in of_one] + [
        (name, kind) for name in "st" for kind in ("left", "phase")
    ]


def test_a_session_whose_deadlines_fail_does_not_stop_the_others(monkeypatch):
    directory = Directory()
    for name in ("s", "t"):
        directory.create(name, SessionSettings(devices=2, join_deadline_s=1, lease_s=100))
        join(directory, name, "a")

    def broken(now):
        raise RuntimeError("broken")

    monkeypatch.setattr(directory.find("s"), "tick", broken)
    directory.tick(1.5)
    assert directory.find("s").session.phase is Phase.GATHERING
    assert directory.find("t").session.phase is Phase.ABORTED


def test_suspended_sessions_stand_still_and_are_resumed_from_the_record(tmp_path):
    record = Record(tmp_path / "record.db")
    directory = Directory(record)
    directory.create("s", SessionSettings(devices=1, heartbeat_s=0.1, lease_s=1))
    join(directory, "s", "a")
    directory.suspend("stopped")
    with pytest.raises(RefusedError, match="is shutting down"):
        directory.check_open()
    directory.tick(100.0)
    assert directory.find("s").session.phase is Phase.TRAINING

    again = Directory(record)
    (recorded,) = record.resumable()
    session = again.resume(recorded)
    assert session.phase is Phase.GATHERING
    assert session.fingerprint == (SPEC,)
    assert join(again, "s", "a").device == "a"
    with pytest.raises(RefusedError, match="is running already"):
        again.resume(recorded)
    record.close()


def test_refusals_are_counted_for_the_coordinator_and_for_the_session_they_name():
    directory = Directory()
    directory.create("s", ONE)
    error = RefusedError(Status.NOT_FOUND, "nothing there")
    for session in ("s", "unknown"):
        directory.note_refusal(error, session, "a", 1.0)
    assert directory.refusals.counts[Status.NOT_FOUND] == 2
    assert directory.find("s").chronicle.statistics.refusals == {"NOT_FOUND": 1}


def test_a_session_is_resumed_after_the_last_batch_of_its_last_step(tmp_path):
    """Its record and what people see count batches; a step of five takes five numbers."""
    record = Record(tmp_path / "record.sqlite")
    directory = Directory(record)
    session = directory.create("s", ONE)
    for step in (0, 5):
        if not step:
            join(directory, "s", "a")
        session.complete("a", step, Contribution(1, 0.5, batches=5), 1.0)
        session.advance(1.0)
        directory.find("s").tick(1.0)
    statistics = directory.find("s").chronicle.statistics
    assert (statistics.step, statistics.steps, statistics.devices["a"].step) == (9, 2, 9)
    record.close()
    (found,) = Record(tmp_path / "record.sqlite").resumable()
    assert found.committed == 9
    assert Directory().resume(found).step.number == 10
