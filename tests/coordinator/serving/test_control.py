"""Sessions that are opened from another process: the coordinator is a real one, and its owner may die."""

import subprocess
import sys

import grpc
import pytest
from bare_client import Device, refused
from edgenewton.v1 import control_pb2, control_pb2_grpc, exchange_pb2_grpc
from edgenewton.v1 import exchange_pb2 as pb
from processes import Coordinator

from coordinator.flower import remote
from coordinator.flower.remote import CoordinatorError, remote_coordinator
from coordinator.serving.server import embedded_coordinator
from coordinator.session.decisions import Phase
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.telemetry.record import Record

ONE = SessionSettings(devices=1)


@pytest.fixture(scope="module")
def coordinator():
    with Coordinator(None) as coordinator:
        assert "runs open their sessions" in coordinator.output
        yield coordinator


@pytest.fixture
def channel(coordinator):
    with grpc.insecure_channel(coordinator.address) as channel:
        yield channel


def join(channel, session):
    return Device(exchange_pb2_grpc.GradientExchangeStub(channel), "a", session=session)


def test_a_run_opens_a_session_that_ends_with_it(coordinator, channel):
    with remote_coordinator(coordinator.address) as owner:
        owner.create_session("one", ONE.model_copy(update={"codec": "bf16", "first_step": 7}))
        device = join(channel, "one")
        assert device.reply.first_step == 7
        assert device.reply.settings.codec == pb.CODEC_BF16
        with pytest.raises(CoordinatorError, match="session 'one' cannot be opened: session 'one' is running already"):
            owner.create_session("one", ONE)
    error = device.error()
    assert error.code() is grpc.StatusCode.ABORTED
    assert "the run is over" in error.details()


def test_an_owner_that_is_killed_loses_its_session(coordinator, channel):
    program = f"""
import sys, time
from coordinator.flower import remote
from coordinator.session.settings import SessionSettings
remote.OWNER_LEASE_S = 1.0
owner = remote.RemoteCoordinator({coordinator.address!r})
owner.create_session("orphan", SessionSettings(devices=1))
print("open", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "open\n"
        device = join(channel, "orphan")
        owner.kill()
    assert "nothing was heard for 1 s from the run that opened it" in device.error().details()


def test_a_kept_session_outlives_its_lease(monkeypatch, coordinator, channel):
    monkeypatch.setattr(remote, "OWNER_LEASE_S", 0.6)
    monkeypatch.setattr(remote, "_KEEP_EVERY_S", 0.1)
    watch = exchange_pb2_grpc.GradientExchangeStub(channel)
    with remote_coordinator(coordinator.address) as owner:
        owner.create_session("kept", SessionSettings(devices=2, join_deadline_s=1.8))
        join(channel, "kept")
        reasons = [e.phase.reason for e in watch.Watch(pb.WatchRequest(session="kept")) if e.HasField("phase")]
    assert "1 of 2 devices joined within 1.8 s" in reasons[-1]  # and not the end of the lease


def test_impossible_sessions_are_refused_with_the_reason(channel):
    stub = control_pb2_grpc.ControlStub(channel)
    for request, code, words in [
        (
            {"session": "s", "settings_json": '{"devices": 0}'},
            grpc.StatusCode.INVALID_ARGUMENT,
            "devices: Input",
        ),
        ({"session": "s", "settings_json": "{"}, grpc.StatusCode.INVALID_ARGUMENT, "Invalid JSON"),
        ({"session": "", "settings_json": "{}"}, grpc.StatusCode.INVALID_ARGUMENT, "a session needs a name"),
    ]:
        given, details = refused(lambda request=request: stub.OpenSession(control_pb2.OpenSessionRequest(**request)))
        assert given is code
        assert words in details
    code, details = refused(lambda: stub.KeepSession(control_pb2.KeepSessionRequest(session="no")))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "session 'no' does not exist" in details
    stub.AbortSession(control_pb2.AbortSessionRequest(session="no"))


def test_a_coordinator_that_is_not_there_or_not_its_own_process_is_named(monkeypatch):
    monkeypatch.setattr(remote, "_OPEN_TIMEOUT_S", 0.3)
    with (
        remote_coordinator("127.0.0.1:9") as nowhere,
        pytest.raises(CoordinatorError, match="no coordinator answers at 127.0.0.1:9"),
    ):
        nowhere.create_session("s", ONE)
    with (
        embedded_coordinator() as embedded,
        remote_coordinator(embedded.address) as owner,
        pytest.raises(CoordinatorError, match="is embedded in another run"),
    ):
        owner.create_session("s", ONE)


def test_the_lease_in_the_state_machine():
    session = Session("s", ONE.model_copy(update={"owner_lease_s": 10.0}))
    session.tick(100.0)
    session.tick(109.9)
    session.keep(109.0)
    session.tick(118.9)
    assert session.phase is Phase.GATHERING
    session.tick(119.0)
    assert session.phase is Phase.ABORTED


def test_a_resumed_coordinator_forgets_what_ended_with_its_run(tmp_path):
    record = Record(tmp_path / "record")
    for name, lease_s in (("owned", 15.0), ("free", None)):
        record.begin_session(name, ONE.model_copy(update={"owner_lease_s": lease_s}))
        record.set_phase(name, Phase.ABORTED, "it was aborted")
    record.begin_session("running", ONE.model_copy(update={"owner_lease_s": 15.0}))
    assert [known.name for known in record.resumable()] == ["free", "running"]
