"""The certificate authority by its commands; OpenSSL itself says whether the certificates are right."""

import datetime as dt
import shutil
import subprocess

import pytest
from certificates import DAY, Certificates
from edgenewton.identity import Kind
from edgenewton.tls import TlsError, TlsFiles
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.identity.authority import Authority, AuthorityError
from coordinator.identity.server_tls import ServerTls, ServerTlsFiles


def ca(*arguments):
    return CliRunner().invoke(app, ["ca", *map(str, arguments)])


def openssl(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pki" / "ca"
    assert ca("init", folder).exit_code == 0
    return folder


def test_everything_is_for_its_owner_alone(folder):
    assert ca("issue", "gateway-7", "--ca", folder, "--label", "factory").exit_code == 0
    assert ca("issue", "hub", "--ca", folder, "--server", "--host", "hub.example").exit_code == 0
    paths = list(folder.rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in [folder, *paths] if path.is_dir()} == {0o700}
    names = {str(path.relative_to(folder)) for path in paths if path.is_file()} - {".lock"}
    assert names == {
        *("ca.pem", "ca.key", "ledger.json", "revoked.pem"),
        *(f"devices/gateway-7/{name}" for name in ("ca.pem", "certificate.pem", "key.pem")),
        *(f"coordinators/hub/{name}" for name in ("ca.pem", "certificate.pem", "key.pem", "revoked.pem")),
    }


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_takes_the_certificates(folder):
    ca("issue", "gateway-7", "--ca", folder, "--label", "factory", "--days", "30")
    ca("issue", "hub", "--ca", folder, "--server", "--host", "hub.example", "--host", "10.1.2.3")
    device = folder / "devices/gateway-7/certificate.pem"
    server = folder / "coordinators/hub/certificate.pem"
    verify = ("verify", "-x509_strict", "-CAfile", folder / "ca.pem")
    assert openssl(*verify, "-purpose", "sslclient", device).returncode == 0
    for host in (("-verify_hostname", "hub.example"), ("-verify_ip", "10.1.2.3"), ("-verify_hostname", "localhost")):
        assert openssl(*verify, "-purpose", "sslserver", *host, server).returncode == 0
    assert openssl(*verify, "-purpose", "sslserver", "-verify_hostname", "other.example", server).returncode != 0
    # Neither can play the other's part, and none can issue certificates.
    assert openssl(*verify, "-purpose", "sslserver", device).returncode != 0
    assert openssl(*verify, "-purpose", "sslclient", server).returncode != 0
    text = openssl("x509", "-in", device, "-noout", "-text").stdout
    for words in ("NIST CURVE: P-256", "ecdsa-with-SHA256", "URI:spiffe://edgenewton/device/gateway-7", "CA:FALSE"):
        assert words in text
    assert "OU = factory, CN = gateway-7" in text or "OU=factory, CN=gateway-7" in text

    with_crl = (*verify, "-crl_check", "-CRLfile", folder / "revoked.pem", device)
    assert openssl(*with_crl).returncode == 0
    ca("revoke", "gateway-7", "--ca", folder)
    assert "certificate revoked" in openssl(*with_crl).stderr


def test_the_list_tells_what_became_of_each(folder):
    for name in ("a", "b"):
        ca("issue", name, "--ca", folder, "--label", "north")
    ca("revoke", "a", "--ca", folder)
    rows = [line for line in ca("list", "--ca", folder).stdout.splitlines() if "device" in line]
    assert [(" a " in row, "north" in row, "revoked" in row, "valid" in row) for row in rows] == [
        (True, True, True, False),
        (False, True, False, True),
    ]


def test_a_renewed_certificate_leaves_the_one_before_to_be_revoked_alone(tmp_path):
    certificates = Certificates(tmp_path / "ca")
    old = certificates.device("a").read().identity
    new = certificates.device("a").read().identity
    certificates.authority.revoke(Kind.DEVICE, "a", keep_latest=True)
    tls = ServerTls(ServerTlsFiles.parse(str(tmp_path / "ca")))
    assert (tls.is_revoked(old), tls.is_revoked(new)) == (True, False)
    with pytest.raises(AuthorityError, match="no older certificate of device 'a'"):
        certificates.authority.revoke(Kind.DEVICE, "a", keep_latest=True)


def test_impossible_orders_are_refused_with_the_reason(folder, tmp_path):
    nowhere = tmp_path / "nowhere"
    for arguments, words in [
        (("init", folder), "has an authority already"),
        (("issue", "a", "--ca", nowhere), "make an authority with `edge-coordinator ca init`"),
        (("issue", "../a", "--ca", folder), "the name of a device has 1 to 128 letters"),
        (("issue", "..", "--ca", folder), "the name of a device has 1 to 128 letters"),
        (("issue", "a", "--ca", folder, "--label", "a b"), "a label has 1 to 128 letters"),
        (("issue", "a", "--ca", folder, "--host", "x"), "add --server"),
        (("issue", "hub", "--ca", folder, "--server", "--host", "h\u00e4"), "neither a host's name nor an address"),
        (("issue", "hub", "--ca", folder, "--server", "--label", "x"), "labels belong to devices"),
        (("revoke", "nobody", "--ca", folder), "no valid certificate of device 'nobody'"),
    ]:
        result = ca(*arguments)
        assert result.exit_code != 0, arguments
        assert words in " ".join(result.output.split()), arguments
    assert not (folder / "devices").exists()
    with pytest.raises(AuthorityError, match="the authority itself is valid until"):
        Authority(folder).issue(Kind.DEVICE, "a", dt.timedelta(days=40 * 365))


def test_files_that_cannot_be_used_are_named(tmp_path):
    certificates = Certificates(tmp_path / "ca")
    a, b = certificates.device("a"), certificates.device("b")
    other = Certificates(tmp_path / "other").device("a")
    assert a.read().identity.name == "a"
    for files, words in [
        (TlsFiles(a.ca, a.certificate, tmp_path / "no.pem"), "no.pem cannot be read: No such file"),
        (TlsFiles(a.ca, a.key, a.key), "holds no certificate in PEM"),
        (TlsFiles(a.ca, a.certificate, a.certificate), "holds no private key in PEM"),
        (TlsFiles(a.ca, a.certificate, b.key), "is not that of"),
        (TlsFiles(other.ca, a.certificate, a.key), "was not issued by the authority in"),
        (certificates.expired("late"), "the certificate of device 'late' expired on"),
        (certificates.device("early", now=dt.datetime.now(dt.UTC) + DAY), "is this machine's clock right?"),
    ]:
        with pytest.raises(TlsError, match=words):
            files.read()


def test_a_revocation_list_of_another_authority_is_no_list(tmp_path):
    Certificates(tmp_path / "ca")
    Certificates(tmp_path / "other")
    hub = tmp_path / "ca/coordinators/hub"
    shutil.copy(tmp_path / "other/revoked.pem", hub / "revoked.pem")
    with pytest.raises(TlsError, match=r"revoked.pem is not signed by the authority in"):
        ServerTls(ServerTlsFiles.parse(str(hub)))


def test_a_folder_stands_for_its_one_coordinator(tmp_path):
    Authority.create(tmp_path / "ca")
    with pytest.raises(TlsError, match="has no coordinator yet"):
        ServerTlsFiles.parse(str(tmp_path / "ca"))
    for name in ("one", "two"):
        Authority(tmp_path / "ca").issue(Kind.COORDINATOR, name, DAY)
    with pytest.raises(TlsError, match="has several coordinators; name the folder of one of them: .*one.*two"):
        ServerTlsFiles.parse(str(tmp_path / "ca"))
    assert ServerTlsFiles.parse("a,b,c,d").revoked is not None
    assert ServerTlsFiles.parse("a,b,c").revoked is None
