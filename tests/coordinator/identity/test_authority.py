"""The authority on disk, checked with OpenSSL's own tools, and what the coordinator makes of its files."""

import datetime as dt
import shutil
import stat
import subprocess

import pytest
from cryptography import x509
from edgenewton.common.identity import IdentityError, Kind, identity_of
from edgenewton.common.tls import TlsError, TlsFiles
from typer.testing import CliRunner

from coordinator.cli.commands import app
from coordinator.identity.authority import Authority, AuthorityError
from coordinator.identity.ledger import LedgerError
from coordinator.identity.server_tls import ServerTls, ServerTlsFiles

DAY = dt.timedelta(days=1)


@pytest.fixture
def authority(tmp_path):
    return Authority.create(tmp_path / "ca")


def ca(folder, *arguments):
    result = CliRunner().invoke(app, ["ca", *arguments], env={"EDGENEWTON_CA": str(folder), "COLUMNS": "200"})
    return result.exit_code, result.output


def openssl(*arguments):
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_agrees_with_what_was_issued_and_revoked(authority):
    device = authority.issue(Kind.DEVICE, "gateway-7", DAY, labels=["field"])
    server = authority.issue(Kind.COORDINATOR, "c0", DAY, hosts=["coordinator.example", "10.0.0.5", "::1"])
    root = authority.folder / "ca.pem"
    for purpose, folder, good in [
        ("sslclient", device, True),
        ("sslserver", server, True),
        ("sslserver", device, False),
        ("sslclient", server, False),
    ]:
        result = openssl("verify", "-x509_strict", "-purpose", purpose, "-CAfile", root, folder / "certificate.pem")
        assert (result.returncode == 0) is good, result.stderr
    verify = ("verify", "-CAfile", root, server / "certificate.pem")
    for option, host, good in [
        ("-verify_hostname", "coordinator.example", True),
        ("-verify_ip", "10.0.0.5", True),
        ("-verify_hostname", "other.example", False),
        ("-verify_ip", "10.0.0.6", False),
    ]:
        assert (openssl(*verify[:1], option, host, *verify[1:]).returncode == 0) is good
    text = openssl("x509", "-in", server / "certificate.pem", "-noout", "-text").stdout
    assert "DNS:coordinator.example, IP Address:10.0.0.5, IP Address:0:0:0:0:0:0:0:1" in text
    assert "ASN1 OID: prime256v1" in text
    text = openssl("x509", "-in", device / "certificate.pem", "-noout", "-text").stdout
    assert "URI:spiffe://edgenewton/device/gateway-7" in text
    assert "OU = field" in text or "OU=field" in text

    crl = ("verify", "-crl_check", "-CAfile", root, "-CRLfile", authority.folder / "revoked.pem")
    assert openssl(*crl, device / "certificate.pem").returncode == 0
    authority.revoke(Kind.DEVICE, "gateway-7")
    assert "certificate revoked" in openssl(*crl, device / "certificate.pem").stderr
    assert openssl(*crl, server / "certificate.pem").returncode == 0


def test_all_files_are_for_their_owner(authority):
    authority.issue(Kind.DEVICE, "d0", DAY)
    authority.issue(Kind.COORDINATOR, "c0", DAY)
    for path in (authority.folder, *authority.folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_renewed_certificate_goes_on_when_the_older_one_is_revoked(authority):
    names = [authority.issue(Kind.DEVICE, "d0", DAY) for _ in range(2)]
    assert names[0] == names[1]
    first, second = authority.entries()
    (revoked,) = authority.revoke(Kind.DEVICE, "d0", keep_latest=True)
    assert revoked.serial == first.serial != second.serial
    serial = TlsFiles.in_folder(names[0]).read().identity.serial
    assert serial == int(second.serial, 16)
    with pytest.raises(AuthorityError, match="no older certificate of device 'd0'"):
        authority.revoke(Kind.DEVICE, "d0", keep_latest=True)
    assert [entry.state(dt.datetime.now(dt.UTC)) for entry in authority.entries()] == ["revoked", "valid"]


def test_what_cannot_be_issued_is_said(authority):
    for name, labels, hosts, lifetime, words in [
        ("a/b", (), (), DAY, "the name of a device has 1 to 128 letters"),
        ("..", (), (), DAY, "the name of a device"),
        ("d0", ("x y",), (), DAY, "a label has"),
        ("d0", (), ("ü.example",), DAY, "is neither a host's name nor an address"),
        ("d0", (), (), 20 * 365 * DAY, "the authority itself is valid until"),
    ]:
        with pytest.raises(AuthorityError, match=words):
            authority.issue(Kind.DEVICE, name, lifetime, labels=labels, hosts=hosts)
    assert authority.entries() == []
    with pytest.raises(AuthorityError, match="has an authority already"):
        Authority.create(authority.folder)
    (authority.folder / "ledger.json").write_text("{")
    with pytest.raises(LedgerError, match="ledger.json is damaged"):
        authority.entries()


def test_the_commands(tmp_path):
    folder = tmp_path / "fleet"
    assert ca(folder, "issue", "d0") == (
        1,
        f"error: {folder}/ca.pem is missing; make an authority with `edge-coordinator ca init`\n",
    )
    code, output = ca(folder, "init", str(folder))
    assert code == 0
    assert f"{folder}/ca.key" in output
    for arguments in (
        ("issue", "c0", "--server", "--host", "coordinator.example"),
        ("issue", "d0", "--label", "field", "--days", "3"),
        ("issue", "boss", "--label", "operator"),
        ("revoke", "d0"),
    ):
        code, output = ca(folder, *arguments)
        assert code == 0, output
    code, output = ca(folder, "list")
    rows = [[cell.strip() for cell in line.split("│")[1:6]] for line in output.splitlines() if "│" in line]
    assert [(kind, name, labels, state) for kind, name, labels, _, state in rows] == [
        ("coordinator", "c0", "", "valid"),
        ("device", "d0", "field", "revoked"),
        ("device", "boss", "operator", "valid"),
    ]
    for arguments, words in [
        (("issue", "d1", "--host", "x"), "--host belongs to the certificates of coordinators"),
        (("issue", "c1", "--server", "--label", "x"), "labels belong to devices"),
        (("revoke", "d0"), "no valid certificate of device 'd0'"),
        (("init", str(folder)), "has an authority already"),
    ]:
        code, output = ca(folder, *arguments)
        assert code in (1, 2)
        assert words in output


# ---------------------------------------------------------------- what the files are read as


def test_files_that_do_not_belong_together_are_named(authority, tmp_path):
    d0, d1 = (TlsFiles.in_folder(authority.issue(Kind.DEVICE, name, DAY)) for name in ("d0", "d1"))
    other = Authority.create(tmp_path / "other")
    text = tmp_path / "text.pem"
    text.write_text("hello")
    now = dt.datetime.now(dt.UTC)
    for files, at, words in [
        (TlsFiles(tmp_path / "no.pem", d0.certificate, d0.key), now, "no.pem cannot be read: No such file"),
        (TlsFiles(d0.ca, text, d0.key), now, "text.pem holds no certificate in PEM"),
        (TlsFiles(d0.ca, d0.certificate, text), now, "text.pem holds no private key in PEM"),
        (TlsFiles(d0.ca, d0.certificate, d1.key), now, "d1/key.pem is not that of"),
        (TlsFiles(other.folder / "ca.pem", d0.certificate, d0.key), now, "was not issued by the authority in"),
        (TlsFiles(d0.ca, d0.ca, authority.folder / "ca.key"), now, "has no subjectAltName"),
        (d0, now + 2 * DAY, "the certificate of device 'd0' expired on"),
        (d0, now - DAY, "is valid from .* is this machine's clock right?"),
    ]:
        with pytest.raises(TlsError, match=words):
            files.read(at)
    assert d0.read().identity.name == "d0"
    assert TlsFiles.parse(f"{d0.ca}, {d0.certificate},{d0.key}") == d0
    with pytest.raises(TlsError, match="neither a folder with certificates nor three files"):
        TlsFiles.parse("a,b")


def test_a_certificate_of_another_kind_names_nobody(authority):
    pem = (authority.folder / "ca.pem").read_bytes()
    with pytest.raises(IdentityError, match="has no subjectAltName"):
        identity_of(x509.load_pem_x509_certificate(pem))


def test_a_coordinators_files_are_found_and_reread(authority):
    folder = authority.folder
    with pytest.raises(TlsError, match="has no coordinator yet"):
        ServerTlsFiles.parse(str(folder))
    own = authority.issue(Kind.COORDINATOR, "c0", DAY)
    assert ServerTlsFiles.parse(str(folder)) == ServerTlsFiles.parse(str(own))
    tls = ServerTls(ServerTlsFiles.parse(str(folder)))
    first = tls.identity
    assert tls._fetch_configuration() is None  # nothing new
    shutil.copy(folder / "ca.key", own / "key.pem")  # half of a replacement
    assert tls._fetch_configuration() is None
    authority.issue(Kind.COORDINATOR, "c0", DAY)
    assert tls._fetch_configuration() is not None
    assert tls.identity.serial != first.serial
    authority.issue(Kind.COORDINATOR, "c1", DAY)
    with pytest.raises(TlsError, match="has several coordinators"):
        ServerTlsFiles.parse(str(folder))


def test_a_certificate_counts_until_it_expires_or_is_revoked(authority):
    authority.issue(Kind.COORDINATOR, "c0", DAY)
    tls = ServerTls(ServerTlsFiles.parse(str(authority.folder)))
    now = dt.datetime.now(dt.UTC)
    identity = TlsFiles.in_folder(authority.issue(Kind.DEVICE, "d0", DAY)).read().identity
    assert tls.fault(identity, now) == ""
    assert "expired on" in tls.fault(identity, now + 2 * DAY)
    authority.revoke(Kind.DEVICE, "d0")
    assert tls.fault(identity, now) == ""  # not reread yet
    assert tls.reread()
    assert "was revoked" in tls.fault(identity, now)
    assert not tls.reread()


def test_a_revocation_list_of_another_authority_is_no_list(authority, tmp_path):
    own = authority.issue(Kind.COORDINATOR, "c0", DAY)
    other = Authority.create(tmp_path / "other")
    shutil.copy(other.folder / "revoked.pem", own / "revoked.pem")
    with pytest.raises(TlsError, match=r"revoked\.pem is not signed by the authority in"):
        ServerTls(ServerTlsFiles.parse(str(own)))
