"""An authority's files on disks that fail: damage is noticed, and nothing that was revoked counts again."""

import datetime as dt
import logging

import pytest
from broken_disks import bits, flipped, full_disk
from cryptography import x509
from edgenewton.common.identity import Kind
from edgenewton.common.tls import TlsError, TlsFiles

from coordinator.identity.audit import AuditLog
from coordinator.identity.authority import Authority, AuthorityError
from coordinator.identity.ledger import LedgerError
from coordinator.identity.server_tls import ServerTls, ServerTlsFiles

DAY = dt.timedelta(days=1)


@pytest.fixture
def authority(tmp_path):
    authority = Authority.create(tmp_path / "ca")
    authority.issue(Kind.COORDINATOR, "c0", DAY)
    for name in ("a", "b"):
        authority.issue(Kind.DEVICE, name, DAY)
    return authority


def spoil(path, bit=200):
    path.write_bytes(flipped(path.read_bytes(), bit))


def states(authority):
    return [(entry.name, entry.state(dt.datetime.now(dt.UTC))) for entry in authority.entries()]


def revoked(authority):
    crl = x509.load_pem_x509_crl((authority.folder / "revoked.pem").read_bytes())
    return {f"{entry.serial_number:x}" for entry in crl}


@pytest.mark.parametrize("last", ["issued", "revoked"])
def test_a_damaged_ledger_is_put_together_again(authority, last, caplog):
    if last == "revoked":
        authority.revoke(Kind.DEVICE, "a")
    expected = states(authority)
    spoil(authority.folder / "ledger.json")
    assert sorted(states(authority)) == sorted(expected)
    assert "ledger.json is damaged: its content does not have the digest that was saved with it" in caplog.text
    assert (authority.folder / "ledger.json.damaged").exists()
    caplog.clear()
    assert sorted(states(authority)) == sorted(expected)
    assert caplog.messages == []
    authority.revoke(Kind.DEVICE, "b")
    assert len(revoked(authority)) == (2 if last == "revoked" else 1)


def test_without_any_good_ledger_nothing_is_issued_or_forgotten(authority):
    authority.revoke(Kind.DEVICE, "a")
    for name in ("ledger.json", "ledger.json.previous"):
        spoil(authority.folder / name)
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"no good ledger.json.previous beside it: take both from a backup"):
            authority.issue(Kind.DEVICE, "c", DAY)
    assert len(revoked(authority)) == 1


def test_what_was_revoked_stays_so_without_a_ledger(authority):
    authority.revoke(Kind.DEVICE, "a")
    before = revoked(authority)
    (authority.folder / "ledger.json").unlink()
    authority.issue(Kind.DEVICE, "b", DAY)
    authority.revoke(Kind.DEVICE, "b")
    assert before < revoked(authority)


@pytest.mark.parametrize("name", ["ca.pem", "certificate.pem", "key.pem"])
def test_every_flipped_bit_of_a_devices_files_is_noticed(authority, name):
    path = authority.folder / "devices" / "a" / name
    whole = path.read_bytes()
    files = TlsFiles.in_folder(path.parent)
    files.read()
    for bit in bits(whole, count=30):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(TlsError, match=f"{name} "):
            files.read()
    spoil_text = "its content does not have the digest that was saved with it; copy it anew, or issue another with"
    path.write_bytes(flipped(whole, 400))
    with pytest.raises(TlsError, match=spoil_text):
        files.read()


@pytest.mark.parametrize("name", ["ca.key", "ca.pem"])
def test_a_damaged_authority_says_where_to_take_it_from(authority, name):
    spoil(authority.folder / name)
    with pytest.raises(AuthorityError, match=rf"{name} is damaged: .*; take it from a backup of the folder"):
        Authority(authority.folder)


def test_a_damaged_revocation_list_is_refused_and_written_anew(authority, caplog):
    authority.revoke(Kind.DEVICE, "a")
    path = authority.folder / "coordinators" / "c0" / "revoked.pem"
    for damaged in (path, authority.folder / "revoked.pem"):
        spoil(damaged)
    with pytest.raises(TlsError, match=r"revoked.pem is damaged: .*; copy revoked.pem anew from"):
        ServerTls(ServerTlsFiles.parse(str(authority.folder)))
    authority.revoke(Kind.DEVICE, "b")
    assert "revoked.pem is damaged, and is written anew from the ledger" in caplog.text
    assert len(revoked(authority)) == 2
    ServerTls(ServerTlsFiles.parse(str(authority.folder)))


def test_a_full_disk_leaves_an_authority_as_it_was(authority):
    expected = states(authority)
    with full_disk(300), pytest.raises(AuthorityError, match="ca cannot be written: File too large"):
        authority.issue(Kind.DEVICE, "c", DAY)
    assert states(authority) == expected


def test_on_a_full_disk_the_audit_log_says_so_once_and_counts_what_it_lacks(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    log = AuditLog(tmp_path / "audit.jsonl")
    log.joined("s", "a", None, "")
    with full_disk(200):
        for _ in range(3):
            log.joined("s", "b", None, "")
    log.joined("s", "c", None, "")
    log.close()
    assert caplog.messages == [
        f"the audit log {tmp_path}/audit.jsonl cannot be written: File too large; sessions go on",
        f"{tmp_path}/audit.jsonl is written again; 3 lines are lost",
    ]
    assert [line.split('"event": "')[1].split('"')[0] for line in (tmp_path / "audit.jsonl").open()] == [
        "joined",
        "interrupted",
        "joined",
    ]
