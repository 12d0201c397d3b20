"""Certificates that are replaced while a session is on: real devices, a real coordinator, an authority of our own."""

import datetime as dt
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from edgenewton.common.identity import Kind
from edgenewton.common.tls import TlsFiles
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.identity.audit import AuditLog
from coordinator.identity.authority import Authority
from coordinator.identity.gate import AccessGate
from coordinator.identity.server_tls import ServerTls, ServerTlsFiles
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import GradientExchange
from edge_client.exchange import Cause, ExchangeError
from edge_client.sync.sketching import sketch_of

DAY = dt.timedelta(days=1)
SPEC = TensorSpec("w", (3,))
KEY = (SPEC.kind, SPEC.name)
NAMES = ("d0", "d1")


class Still:
    """A replica that nothing changes."""

    is_shared = True
    next_step = None
    epsilon = None

    def digest(self) -> bytes:
        return hashlib.sha256(b"same").digest()

    def frozen_sketch(self):
        return None

    def sketch(self, seed: int):
        return sketch_of({"w": torch.ones(3)}, seed)

    def dump(self) -> bytes:
        return b"same"

    def load(self, data: bytes) -> None:
        raise AssertionError("no device is to heal here")

    def apply(self, result) -> None:
        raise AssertionError("no device is to fall behind here")


class Fleet:
    """Two devices in a session of a coordinator with certificates."""

    def __init__(self, folder) -> None:
        self.authority = Authority.create(folder / "ca")
        self.authority.issue(Kind.COORDINATOR, "c0", DAY, hosts=["127.0.0.1"])
        self.files = {name: self.issue(name) for name in NAMES}
        self.audit_path = folder / "audit.jsonl"
        self.tls = ServerTls(ServerTlsFiles.parse(str(folder / "ca")))
        self.gate = AccessGate(self.tls, AuditLog(self.audit_path))
        self.step = 0

    def issue(self, name: str, lifetime: dt.timedelta = DAY) -> TlsFiles:
        return TlsFiles.in_folder(self.authority.issue(Kind.DEVICE, name, lifetime))

    def start(self, coordinator) -> None:
        coordinator.create_session("s", SessionSettings(devices=2))
        with ThreadPoolExecutor() as pool:
            self.exchanges = list(pool.map(lambda name: self.connect(coordinator, name), NAMES))
        self.places = [exchange.join([SPEC], {}, Still()) for exchange in self.exchanges]

    def connect(self, coordinator, name: str) -> GradientExchange:
        return GradientExchange.connect(coordinator.address, session="s", device=name, tls=self.files[name])

    def train(self) -> None:
        """Let both devices take a step, in which they get the mean of what they send."""

        def take(value: float, place) -> None:
            place.begin(samples=1)
            place.contribute(KEY, torch.full((3,), value))
            place.complete(loss=0.0)
            result = place.collect()
            assert (result.step, result.devices, result.is_healed) == (self.step, 2, False)
            assert torch.equal(result.tensors[KEY], torch.full((3,), 2.0))

        with ThreadPoolExecutor() as pool:
            list(pool.map(take, (1.0, 3.0), self.places))
        self.step += 1

    def close(self) -> None:
        for exchange in self.exchanges:
            exchange.close()

    def audited(self, event: str) -> list[dict]:
        lines = [json.loads(line) for line in self.audit_path.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def serials(self, name: str) -> list[int]:
        return [int(line["serial"], 16) for line in self.audited("joined") if line["device"] == name]


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


@pytest.fixture
def coordinator(fleet):
    with embedded_coordinator(gate=fleet.gate) as coordinator:
        fleet.start(coordinator)
        yield coordinator
        fleet.close()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end_expired(coordinator, now: dt.datetime) -> None:
    """Let the coordinator look at the open streams' certificates as if it were another day."""

    async def look() -> None:
        coordinator._server._guard._end_invalid(now)

    coordinator._call(look())


def test_a_revoked_certificate_is_replaced_in_the_middle_of_a_session(fleet, coordinator):
    fleet.train()
    before = fleet.files["d0"].read().identity.serial
    fleet.issue("d0")
    fleet.authority.issue(Kind.COORDINATOR, "c0", DAY, hosts=["127.0.0.1"])
    fleet.train()  # what is connected stays so
    fleet.authority.revoke(Kind.DEVICE, "d0", keep_latest=True)
    wait_until(lambda: fleet.audited("revoked"))
    fleet.train()
    fleet.train()
    after = fleet.files["d0"].read().identity.serial
    assert fleet.serials("d0") == [before, after]
    assert len(fleet.serials("d1")) == 1
    # The new connection was served with the coordinator's own new certificate.
    own = TlsFiles.in_folder(fleet.authority.folder / "coordinators/c0").read().identity
    assert fleet.tls.identity.serial == own.serial


def test_an_expired_certificate_is_replaced_in_the_middle_of_a_session(fleet, coordinator):
    fleet.train()
    for name in NAMES:
        fleet.issue(name, 9 * DAY)
    end_expired(coordinator, dt.datetime.now(dt.UTC) + 2 * DAY)
    fleet.train()
    assert len(fleet.serials("d0")) == len(fleet.serials("d1")) == 2
    assert not fleet.audited("revoked")


def test_a_certificate_that_nobody_replaces_ends_the_exchange_with_the_reason(fleet, coordinator):
    fleet.train()
    fleet.authority.revoke(Kind.DEVICE, "d0")
    wait_until(lambda: fleet.places[0]._link.lost is not None)
    fleet.places[0].begin(samples=1)
    reason = r"the certificate of device 'd0' \(serial [0-9a-f]+\) was revoked"
    with pytest.raises(ExchangeError, match=reason) as raised:
        fleet.places[0].contribute(KEY, torch.zeros(3))
    assert raised.value.cause is Cause.REFUSED
    with pytest.raises(ExchangeError, match="refuses this device: the certificate of device 'd0'"):
        fleet.connect(coordinator, "d0")
