"""Channel keys that certificates vouch for: a coordinator that passes on a key of its own is found out."""

import copy
import datetime as dt
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from edgenewton.common.identity import Kind
from edgenewton.common.tls import TlsFiles
from edgenewton.secure_aggregation.channel_keys import ChannelKeyCheck, signed_channel_key
from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.secure_aggregation.key_agreement import public_key
from edgenewton.secure_aggregation.shamir import random_secret
from edgenewton.v1 import exchange_pb2 as pb
from test_secure_aggregation import until
from torch import nn

from coordinator.identity.audit import AuditLog
from coordinator.identity.authority import Authority
from coordinator.identity.gate import AccessGate
from coordinator.identity.server_tls import ServerTls, ServerTlsFiles
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer
from edge_client.exchange import ExchangeError

DAY = dt.timedelta(days=1)


def authority_in(folder):
    authority = Authority.create(folder)
    authority.issue(Kind.COORDINATOR, "c0", DAY, hosts=["127.0.0.1"])
    return authority


def files_of(authority, name, kind=Kind.DEVICE, **options):
    return TlsFiles.in_folder(authority.issue(kind, name, DAY, **options))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return authority_in(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="module")
def files(authority):
    return {name: files_of(authority, name) for name in ("d0", "d1", "d2")}


def key_of(files, session="s", device="d1"):
    return signed_channel_key(files.read(), session, pb.ChannelKey(device=device, public=public_key(random_secret())))


def test_a_key_that_its_devices_certificate_signed_is_taken(files):
    ChannelKeyCheck(files["d0"].read())("s", key_of(files["d1"]))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda key, files: key.MergeFrom(pb.ChannelKey(public=public_key(random_secret()))), "did not sign"),
        (lambda key, files: key.CopyFrom(key_of(files["d1"], session="other")), "did not sign"),
        (lambda key, files: key.CopyFrom(key_of(files["d2"])), "certificate of device 'd2'"),
        (lambda key, files: key.ClearField("certificates"), "no certificate vouches"),
        (lambda key, files: key.certificates.__setitem__(0, b"x"), "that is none"),
    ],
)
def test_a_key_that_nobody_vouches_for_is_refused_by_name(files, change, text):
    key = key_of(files["d1"])
    change(key, files)
    with pytest.raises(SecureAggregationError, match=f"device 'd1' has a channel key .*{text}"):
        ChannelKeyCheck(files["d0"].read())("s", key)


def test_a_certificate_of_another_authority_or_kind_is_refused(files, authority, tmp_path):
    other = files_of(authority_in(tmp_path / "ca"), "d1")
    with pytest.raises(SecureAggregationError, match="unknown authority"):
        ChannelKeyCheck(files["d0"].read())("s", key_of(other))
    coordinator = files_of(authority, "d1", Kind.COORDINATOR, hosts=["127.0.0.1"])
    with pytest.raises(SecureAggregationError, match="certificate of coordinator 'd1'"):
        ChannelKeyCheck(files["d0"].read())("s", key_of(coordinator))


def train(coordinator, name, model, tls, steps=3):
    with GradientExchange.connect(coordinator.address, session="s", device=name, tls=tls) as exchange:
        optimizer = NewtonOptimizer(model, lr=0.05, sync=EveryBatch(exchange))
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(torch.randn(8, 4, generator=generator)), torch.zeros(8, 2)).backward()
            optimizer.step()


@pytest.mark.parametrize("swaps", [False, True])
def test_a_coordinator_that_swaps_a_key_is_found_out(authority, files, tmp_path, swaps):
    gate = AccessGate(
        ServerTls(ServerTlsFiles.parse(str(authority.folder / "coordinators" / "c0"))),
        AuditLog(tmp_path / "audit.jsonl"),
    )
    with embedded_coordinator(gate=gate) as coordinator:
        coordinator.create_session("s", SessionSettings(devices=2, rejoin_deadline_s=0, secure_aggregation=True))
        mail = coordinator.directory.find("s")._masking_mail
        honest = mail._untold

        def swapped(device, circle):
            keys = copy.deepcopy(honest(device, circle))
            for key in keys:
                if swaps and key.device == "d1":
                    key.public = public_key(random_secret())
            return keys

        mail._untold = swapped
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            models.append(nn.Linear(4, 2))
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(train, coordinator, f"d{d}", models[d], files[f"d{d}"]) for d in range(2)]
            if not swaps:
                for future in futures:
                    future.result()
                return
            with pytest.raises(ExchangeError, match="device 'd1' has a channel key that its certificate's key did not"):
                futures[0].result()
            with pytest.raises(ExchangeError):
                futures[1].result()


def test_a_renewed_certificate_vouches_for_the_key_after_a_reconnection(authority, files, tmp_path):
    """Else whoever comes when the certificate of before has expired would refuse to mask with the device."""
    own_folder = ServerTlsFiles.parse(str(authority.folder / "coordinators" / "c0"))
    gate = AccessGate(ServerTls(own_folder), AuditLog(tmp_path / "audit.jsonl"))
    mine = files_of(authority, "d9")
    before = mine.read()
    with embedded_coordinator(gate=gate) as coordinator, ThreadPoolExecutor(1) as pool:
        coordinator.create_session("s", SessionSettings(devices=2, secure_aggregation=True))
        session = coordinator.directory.find("s").session
        exchange = GradientExchange.connect(
            coordinator.address, session="s", device="d9", tls=mine, reconnect_deadline_s=20
        )
        with exchange:
            optimizer = NewtonOptimizer(nn.Linear(4, 2), sync=EveryBatch(exchange))
            joining = pool.submit(optimizer.join)
            until(lambda: "d9" in session.members)
            first = session.members["d9"].joining.channel_key
            files_of(authority, "d9")
            authority.revoke(Kind.DEVICE, "d9", keep_latest=True)
            until(lambda: session.members.get("d9") and session.members["d9"].joining.channel_key != first)
            second = session.members["d9"].joining.channel_key
            joining.result(20)
    assert mine.read().certificate != before.certificate
    assert second.public == first.public
    assert second.certificates[0] != first.certificates[0]
    ChannelKeyCheck(files["d1"].read())("s", second)
