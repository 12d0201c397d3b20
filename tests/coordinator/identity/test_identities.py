"""Mutual TLS on a real port: whoever has no right certificate is refused and logged, and the session trains on."""

import datetime as dt
import json
import stat
import time

import grpc
import pytest
from bare_client import Device, join_request, refused
from edgenewton.common.identity import Kind
from edgenewton.common.tls import TlsFiles, open_channel
from edgenewton.v1 import TOKEN_METADATA_KEY, control_pb2, control_pb2_grpc, exchange_pb2_grpc
from edgenewton.v1 import exchange_pb2 as pb
from processes import Coordinator
from secured import LIFETIME, Secured

from coordinator.flower.remote import CoordinatorError, remote_coordinator
from coordinator.identity.authority import Authority
from coordinator.identity.gate import AccessGate
from coordinator.identity.limits import IdentityLimits
from coordinator.identity.server_tls import ServerTls, ServerTlsFiles
from coordinator.serving.server import embedded_coordinator
from coordinator.session.refusal import RefusedError
from coordinator.session.settings import SessionSettings
from edge_client import GradientExchange
from edge_client.exchange import Cause, ExchangeError

DENIED = grpc.StatusCode.PERMISSION_DENIED
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def secured(tmp_path):
    with Secured(tmp_path) as secured:
        yield secured
        secured.train()  # whatever happened, the session goes on


@pytest.fixture
def other_authority(tmp_path):
    return Authority.create(tmp_path / "other")


def credentials(files: TlsFiles, ca: bytes) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(ca, files.key.read_bytes(), files.certificate.read_bytes())


def join(stub, name="c", **fields):
    return lambda: stub.Join(join_request(name, **fields), timeout=10)


def error_of(call) -> grpc.RpcError:
    """Return how a call or a stream ends; it must be an error."""
    with pytest.raises(grpc.RpcError) as raised:
        for _ in call():
            pass
    return raised.value


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_log(capfd, words: str) -> None:
    """Return once gRPC has said why a handshake failed."""
    text = ""

    def is_said() -> bool:
        nonlocal text
        text += capfd.readouterr().err
        return words in text

    wait_until(is_said)


# ---------------------------------------------------------------- refused in the handshake


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("none", "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        ("other authority", "unable to get local issuer certificate"),
        ("expired", "certificate has expired"),
        ("coordinator", "unsupported certificate purpose"),
    ],
)
def test_a_certificate_that_does_not_count_ends_the_handshake(secured, other_authority, capfd, kind, reason):
    ca = secured.files["c"].ca.read_bytes()
    match kind:
        case "none":
            given = grpc.ssl_channel_credentials(ca)
        case "other authority":
            given = credentials(TlsFiles.in_folder(other_authority.issue(Kind.DEVICE, "c", LIFETIME)), ca)
        case "expired":
            given = credentials(secured.issue("c", now=dt.datetime.now(dt.UTC) - 2 * LIFETIME), ca)
        case "coordinator":
            given = credentials(TlsFiles.in_folder(secured.folder / "ca/coordinators/c0"), ca)
    capfd.readouterr()
    code, _ = refused(join(exchange_pb2_grpc.GradientExchangeStub(secured.channel_with(given))))
    assert code is grpc.StatusCode.UNAVAILABLE  # before there is a call, there is no status
    wait_for_log(capfd, reason)
    assert not secured.audited("joined", device="c")


def test_plaintext_on_a_tls_port(secured, capfd):
    with grpc.insecure_channel(secured.address) as channel:
        code, _ = refused(join(exchange_pb2_grpc.GradientExchangeStub(channel)))
    assert code is grpc.StatusCode.UNAVAILABLE
    wait_for_log(capfd, "WRONG_VERSION_NUMBER")


# ---------------------------------------------------------------- refused by name


def test_a_device_cannot_speak_for_another(secured):
    own, foreign = secured.stub("a"), secured.stub("c")
    for call in (
        join(foreign, "a"),
        join(foreign, "z"),
        lambda: foreign.Leave(pb.LeaveRequest(session="s", device="a", token=secured.devices[0].reply.token)),
    ):
        code, details = refused(call)
        assert code is DENIED
        assert "the certificate is that of device 'c'; it cannot speak for device" in details
    stolen = secured.devices[0].metadata
    for call in (
        lambda: list(foreign.Exchange(iter([pb.Frame()]), metadata=stolen, timeout=10)),
        lambda: foreign.UploadSnapshot(iter([pb.SnapshotChunk()]), metadata=stolen, timeout=10),
        lambda: list(foreign.DownloadSnapshot(pb.SnapshotRequest(), metadata=stolen, timeout=10)),
    ):
        assert refused(call)[0] is DENIED
    assert refused(join(own, "a"))[0] is grpc.StatusCode.ALREADY_EXISTS  # it is let in, and has its place
    assert secured.audited("refused", status="PERMISSION_DENIED", device="a", identity="spiffe://edgenewton/device/c")
    assert secured.audited("joined", device="a", identity="spiffe://edgenewton/device/a")


def test_a_token_of_an_older_session_does_not_count(secured):
    secured.coordinator.create_session("old", SessionSettings(devices=1))
    stub = secured.stub("c")
    old = Device(stub, "c", session="old")
    secured.coordinator.abort("old", "to begin anew")
    old.error()
    secured.coordinator.create_session("old", SessionSettings(devices=1))
    new = Device(stub, "c", session="old")
    replayed = stub.Exchange(iter([pb.Frame(step=0)]), metadata=((TOKEN_METADATA_KEY, old.reply.token),), timeout=10)
    code, details = refused(lambda: list(replayed))
    assert code is DENIED
    assert "no device has the token" in details
    assert secured.audited("refused", status="PERMISSION_DENIED", identity="spiffe://edgenewton/device/c")
    new.send_gradient(0, 5.0)
    assert next(new.stream).HasField("commit")


def test_a_session_admits_whom_it_names(secured):
    field = secured.issue("field", "field", "outdoor")
    names = SessionSettings(devices=1, max_devices=9, allow=("a",), allow_labels=("outdoor",))
    secured.coordinator.create_session("named", names)
    code, details = refused(join(secured.stub("c"), session="named"))
    assert code is DENIED
    assert details == "session 'named' does not admit device 'c'"
    assert secured.audited("refused", session="named", device="c", reason=details)
    secured.stub("a").Join(join_request("a", session="named"), timeout=10)
    secured.stub(field).Join(join_request("field", session="named"), timeout=10)
    watched = secured.stub("boss").Watch(pb.WatchRequest(session="named"), timeout=20)
    assert next(watched).session == "named"
    assert refused(lambda: list(secured.stub("c").Watch(pb.WatchRequest(session="named"), timeout=10)))[0] is DENIED
    seen = secured.stub("c").Watch(pb.WatchRequest(), timeout=20)
    assert {next(seen).session for _ in range(4)} == {"s"}  # in all sessions together, only those it may watch


def test_control_takes_the_label_operator(tmp_path):
    authority = Authority.create(tmp_path / "ca")
    authority.issue(Kind.COORDINATOR, "c0", LIFETIME, hosts=["127.0.0.1"])
    device = TlsFiles.in_folder(authority.issue(Kind.DEVICE, "a", LIFETIME, labels=["field"]))
    boss = TlsFiles.in_folder(authority.issue(Kind.DEVICE, "boss", LIFETIME, labels=["operator"]))
    one = SessionSettings(devices=1)
    options = ("--tls", str(tmp_path / "ca"), "--audit", str(tmp_path / "audit.jsonl"), "--allow-label", "indoor")
    with Coordinator(None, 0, *options) as coordinator, open_channel(coordinator.address, device) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        for method, request in (
            (stub.OpenSession, control_pb2.OpenSessionRequest(session="mine", settings_json=one.model_dump_json())),
            (stub.KeepSession, control_pb2.KeepSessionRequest(session="mine")),
            (stub.AbortSession, control_pb2.AbortSessionRequest(session="mine")),
        ):
            code, details = refused(lambda method=method, request=request: method(request, timeout=10))
            assert code is DENIED
            assert "device 'a' may not control sessions; that takes a certificate with the label 'operator'" in details
        devices = exchange_pb2_grpc.GradientExchangeStub(channel)
        with remote_coordinator(coordinator.address, boss) as owner:
            owner.create_session("mine", one.model_copy(update={"allow_labels": ("field",)}))
            owner.create_session("default", one)  # gets the lists of the command
            assert refused(join(devices, "a", session="default"))[0] is DENIED
            assert Device(devices, "a", session="mine").reply.token
        with (
            remote_coordinator(coordinator.address) as plaintext,
            pytest.raises(CoordinatorError, match="it speaks TLS, and this side plaintext"),
        ):
            plaintext.create_session("s", one)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines if line.get("identity", "").endswith("/boss")] == [
        "opened",
        "opened",
        "ended",
        "ended",
    ]
    assert [line["status"] for line in lines if line["event"] == "refused"] == ["PERMISSION_DENIED"] * 4


# ---------------------------------------------------------------- revoked


def test_revocation_ends_open_streams_and_refuses_new_calls(secured):
    device = Device(secured.stub("c"), "c")
    watches = [secured.stub(name).Watch(pb.WatchRequest(session="s"), timeout=60) for name in ("c", "boss")]
    for watch in watches:
        next(watch)
    secured.authority.revoke(Kind.DEVICE, "c")
    for error in (device.error(), error_of(lambda: watches[0]), error_of(join(secured.stub("c")))):
        assert error.code() is UNAUTHENTICATED
        assert "the certificate of device 'c' (serial " in error.details()
        assert error.details().endswith("was revoked")
    assert secured.audited("revoked", session="s", device="c")
    assert secured.audited("left", session="s", device="c", status="UNAUTHENTICATED")
    assert secured.audited("refused", status="UNAUTHENTICATED", identity="spiffe://edgenewton/device/c")
    assert watches[1].is_active()


def test_an_operators_watch_ends_with_his_certificate(secured):
    watch = secured.stub("boss").Watch(pb.WatchRequest(), timeout=60)
    next(watch)
    secured.authority.revoke(Kind.DEVICE, "boss")
    assert error_of(lambda: watch).code() is UNAUTHENTICATED


def test_a_damaged_or_foreign_revocation_list_changes_nothing(secured, other_authority):
    secured.authority.revoke(Kind.DEVICE, "c")
    path = secured.folder / "ca/coordinators/c0/revoked.pem"
    tls = secured.coordinator.directory.gate.tls
    tls.reread()
    for content in (b"-----BEGIN", (other_authority.folder / "revoked.pem").read_bytes()):
        path.write_bytes(content)
        assert not tls.reread()
        assert refused(join(secured.stub("c")))[0] is UNAUTHENTICATED
    path.unlink()
    assert not tls.reread()
    assert refused(join(secured.stub("c")))[0] is UNAUTHENTICATED


# ---------------------------------------------------------------- limits


def test_too_many_messages_cost_a_device_its_place(tmp_path):
    with Secured(tmp_path, IdentityLimits(messages_per_s=1e-3, burst_s=30_000)) as secured:
        device = Device(secured.stub("c"), "c")
        for _ in range(40):
            device.send(pb.Frame(heartbeat=pb.Heartbeat()))
        error = device.error()
        assert error.code() is EXHAUSTED
        assert "'c' sends more than 0.001 messages in a second" in error.details()
        assert refused(join(secured.stub("c")))[0] is EXHAUSTED
        assert secured.audited("refused", status="RESOURCE_EXHAUSTED", device="c", session="s")
        assert secured.audited("left", status="RESOURCE_EXHAUSTED", device="c")
        secured.train()


def test_streams_at_once_and_the_size_of_a_message_are_limited(tmp_path):
    with Secured(tmp_path, IdentityLimits(streams=2, message_bytes=2_048)) as secured:
        stub = secured.stub("c")
        watches = [stub.Watch(pb.WatchRequest(), timeout=60) for _ in range(2)]
        for watch in watches:
            next(watch)
        code, details = refused(lambda: list(stub.Watch(pb.WatchRequest(), timeout=10)))
        assert code is EXHAUSTED
        assert "'c' has 2 streams open already" in details
        watches[0].cancel()
        wait_until(lambda: len(secured.coordinator._server._guard._calls) == 3)  # of a, b and the other watch
        next(stub.Watch(pb.WatchRequest(), timeout=60))
        assert refused(join(secured.stub("b"), "b", weights_digest=b"x" * 3_000))[0] is EXHAUSTED
        secured.train()


# ---------------------------------------------------------------- what a device is told


def test_a_failed_connection_teaches(secured, other_authority, tmp_path):
    good, foreign = secured.files["c"], TlsFiles.in_folder(other_authority.issue(Kind.DEVICE, "c", LIFETIME))
    mixed = TlsFiles(tmp_path / "both.pem", foreign.certificate, foreign.key)
    mixed.ca.write_bytes(good.ca.read_bytes() + foreign.ca.read_bytes())
    port = secured.address.rpartition(":")[2]
    for address, tls, words in [
        (secured.address, None, "it speaks TLS, and this side plaintext"),
        (secured.address, mixed, "it does not take this side's certificate"),
        (secured.address, foreign, "its certificate is not of the authority in"),
        (f"127.0.0.2:{port}", good, None),
        (secured.address, TlsFiles(good.ca, foreign.certificate, foreign.key), "was not issued by the authority in"),
        (secured.address, TlsFiles(good.ca, good.certificate, foreign.key), "is not that of"),
        (secured.address, secured.issue("late", now=dt.datetime.now(dt.UTC) - 2 * LIFETIME), "expired on"),
        (secured.address, TlsFiles.in_folder(tmp_path / "nowhere"), "nowhere/ca.pem cannot be read"),
    ]:
        with pytest.raises(ExchangeError) as raised:
            GradientExchange.connect(address, session="s", device="c", tls=tls, connect_timeout_s=3.0)
        if words is None:  # nobody listens there
            assert raised.value.cause is Cause.UNREACHABLE
        else:
            assert words in str(raised.value)
            assert raised.value.cause is Cause.REFUSED


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"hosts": ["coordinator.example"]}, "its certificate is for other names than that in"),
        ({"now": dt.datetime.now(dt.UTC) - 2 * LIFETIME}, "its certificate has expired; renew it there with"),
    ],
)
def test_a_coordinator_with_a_wrong_certificate_is_not_believed(tmp_path, monkeypatch, fault, words):
    authority = Authority.create(tmp_path / "ca")
    authority.issue(Kind.COORDINATOR, "c0", LIFETIME, **{"hosts": ["127.0.0.1"], **fault})
    device = TlsFiles.in_folder(authority.issue(Kind.DEVICE, "c", LIFETIME))
    with monkeypatch.context() as patch:
        patch.setattr("edgenewton.common.tls.check_dates", lambda *_: None)  # it was valid when the coordinator started
        gate = AccessGate(ServerTls(ServerTlsFiles.parse(str(tmp_path / "ca"))))
    with embedded_coordinator(gate=gate) as coordinator, pytest.raises(ExchangeError) as raised:
        GradientExchange.connect(coordinator.address, session="s", device="c", tls=device, connect_timeout_s=3.0)
    assert words in str(raised.value)
    assert raised.value.cause is Cause.REFUSED


def test_lists_need_certificates():
    with embedded_coordinator() as plain, pytest.raises(RefusedError, match="needs a coordinator with certificates"):
        plain.create_session("s", SessionSettings(devices=1, allow=("a",)))


def test_tls_on_a_plaintext_port_is_said(secured):
    with embedded_coordinator() as coordinator, pytest.raises(ExchangeError) as raised:
        GradientExchange.connect(
            coordinator.address, session="s", device="c", tls=secured.files["c"], connect_timeout_s=3.0
        )
    assert "it speaks plaintext, and this side TLS" in str(raised.value)
    assert raised.value.cause is Cause.REFUSED


def test_the_audit_log_is_for_its_owner_and_sums_up(secured):
    secured.devices[0].end()
    secured.stub("a").Leave(
        pb.LeaveRequest(session="s", device="a", token=secured.devices[0].reply.token, reason="tired")
    )
    (left,) = secured.audited("left", device="a")
    assert (left["steps"], left["samples"], left["reason"]) == (1, 1, "tired")
    assert stat.S_IMODE(secured.audit_path.stat().st_mode) == 0o600
    secured.devices = []  # a session of one device has lost its quorum
    secured.train = lambda: None
