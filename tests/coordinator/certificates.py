"""Certificates of a new authority, and coordinators with TLS, for tests."""

import contextlib
import datetime as dt
import json
from pathlib import Path

import grpc
from edgenewton.identity import Kind
from edgenewton.tls import TlsFiles

from coordinator.identity.audit import AuditLog
from coordinator.identity.authority import DEFAULT_HOSTS, Authority
from coordinator.identity.gate import Gate
from coordinator.identity.server_tls import ServerTls, ServerTlsFiles
from coordinator.server import embedded_coordinator

DAY = dt.timedelta(days=1)


class Certificates:
    """An authority with one coordinator."""

    def __init__(self, folder: Path, hosts=DEFAULT_HOSTS, **issuing) -> None:
        self.folder = folder
        self.authority = Authority.create(folder)
        self.issue_server(hosts, **issuing)

    def issue_server(self, hosts=DEFAULT_HOSTS, **issuing) -> TlsFiles:
        path = self.authority.issue(Kind.COORDINATOR, "hub", issuing.pop("lifetime", DAY), hosts=hosts, **issuing)
        return TlsFiles.in_folder(path)

    def device(self, name: str, *labels: str, lifetime=DAY, **issuing) -> TlsFiles:
        return TlsFiles.in_folder(self.authority.issue(Kind.DEVICE, name, lifetime, labels=labels, **issuing))

    def expired(self, name: str) -> TlsFiles:
        return self.device(name, now=dt.datetime.now(dt.UTC) - 3 * DAY)

    @contextlib.contextmanager
    def coordinator(self, audit: Path | None = None, limits=None, **lists):
        tls = ServerTls(ServerTlsFiles.parse(str(self.folder)))
        with embedded_coordinator(gate=Gate(tls, AuditLog(audit), **lists), limits=limits) as embedded:
            yield embedded


def credentials(trusted: TlsFiles, shown: TlsFiles | None) -> grpc.ChannelCredentials:
    """Return what a client takes that checks nothing itself, as an intruder's would."""
    if shown is None:
        return grpc.ssl_channel_credentials(trusted.ca.read_bytes())
    return grpc.ssl_channel_credentials(trusted.ca.read_bytes(), shown.key.read_bytes(), shown.certificate.read_bytes())


def audited(path: Path, *events: str) -> list[dict]:
    """Return the lines of an audit log, or those of some events."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if not events or line["event"] in events]
