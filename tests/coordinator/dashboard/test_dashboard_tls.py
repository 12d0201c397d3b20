"""The page with TLS: shown to whom the authority knows, and to nobody else."""

import datetime as dt
import ssl
import time

import httpx
import pytest
from edgenewton.common.identity import Kind
from edgenewton.common.tls import TlsFiles
from served import Served

from coordinator.identity.authority import Authority
from coordinator.identity.server_tls import ServerTls, ServerTlsFiles

DAY = dt.timedelta(days=1)


@pytest.fixture
def authority(tmp_path):
    authority = Authority.create(tmp_path / "ca")
    authority.issue(Kind.COORDINATOR, "hub", DAY, hosts=["127.0.0.1"])
    return authority


@pytest.fixture
def tls(authority, tmp_path):
    return ServerTls(ServerTlsFiles.parse(str(tmp_path / "ca")))


def issue(authority, name, **options):
    return TlsFiles.in_folder(authority.issue(Kind.DEVICE, name, DAY, **options))


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


def test_whoever_has_a_certificate_may_look(served, authority):
    shown = issue(authority, "operator-1")
    assert served.url.startswith("https://")
    for path in ("/", "/api/state", "/metrics", "/health"):
        assert get(served, shown.ca, shown, path).status_code == 200


@pytest.mark.parametrize("kind", ["none", "expired", "other authority", "plaintext"])
def test_nobody_else_may(served, authority, tmp_path, kind):
    ca = issue(authority, "a").ca
    shown = {
        "none": lambda: None,
        "plaintext": lambda: None,
        "expired": lambda: issue(authority, "b", now=dt.datetime.now(dt.UTC) - 3 * DAY),
        "other authority": lambda: issue(Authority.create(tmp_path / "other"), "a"),
    }[kind]()
    if kind == "plaintext":
        with pytest.raises(httpx.TransportError):
            httpx.get(served.url.replace("https", "http") + "/api/state", timeout=10)
        return
    with pytest.raises(httpx.TransportError):
        get(served, ca, shown)


def test_a_revoked_certificate_shows_nothing_any_more(served, authority, tls):
    shown = issue(authority, "a")
    assert get(served, shown.ca, shown).status_code == 200
    # A revocation list has a date in whole seconds, and of two of the same second either may count.
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.02)
    authority.revoke(Kind.DEVICE, "a")
    tls.reread()
    with pytest.raises(httpx.TransportError):
        get(served, shown.ca, shown)
    other = issue(authority, "b")
    assert get(served, other.ca, other).status_code == 200
