"""The page with TLS: shown to whom the authority knows, and to nobody else."""

import ssl
import time

import httpx
import pytest
from certificates import Certificates
from edgenewton.identity import Kind
from test_dashboard import Served

from coordinator.identity.server_tls import ServerTls, ServerTlsFiles


@pytest.fixture
def certificates(tmp_path):
    return Certificates(tmp_path / "ca")


@pytest.fixture
def tls(certificates):
    return ServerTls(ServerTlsFiles.parse(str(certificates.folder)))


@pytest.fixture
def served(tls):
    served = Served(tls.page_context())
    yield served
    served.stop()


def get(served, ca, shown=None, path="/api/state"):
    context = ssl.create_default_context(cafile=ca)
    if shown is not None:
        context.load_cert_chain(shown.certificate, shown.key)
    with httpx.Client(verify=context) as client:
        return client.get(served.url + path, timeout=10)


def test_whoever_has_a_certificate_may_look(served, certificates):
    shown = certificates.device("operator-1")
    assert served.url.startswith("https://")
    for path in ("/", "/api/state", "/metrics", "/health"):
        assert get(served, shown.ca, shown, path).status_code == 200


@pytest.mark.parametrize("kind", ["none", "expired", "other authority", "plaintext"])
def test_nobody_else_may(served, certificates, tmp_path, kind):
    ca = certificates.device("a").ca
    shown = {
        "none": lambda: None,
        "plaintext": lambda: None,
        "expired": lambda: certificates.expired("b"),
        "other authority": lambda: Certificates(tmp_path / "other").device("a"),
    }[kind]()
    if kind == "plaintext":
        with pytest.raises(httpx.TransportError):
            httpx.get(served.url.replace("https", "http") + "/api/state", timeout=10)
        return
    with pytest.raises(httpx.TransportError):
        get(served, ca, shown)


def test_a_revoked_certificate_shows_nothing_any_more(served, certificates, tls):
    shown = certificates.device("a")
    assert get(served, shown.ca, shown).status_code == 200
    # A revocation list has a date in whole seconds, and of two of the same second either may count.
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.02)
    certificates.authority.revoke(Kind.DEVICE, "a")
    tls.reread()
    with pytest.raises(httpx.TransportError):
        get(served, shown.ca, shown)
    other = certificates.device("b")
    assert get(served, other.ca, other).status_code == 200
