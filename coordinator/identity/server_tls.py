"""The coordinator's certificate, whom it trusts, and who was revoked: files that may be replaced while it serves."""

import datetime as dt
import logging
import ssl
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from edgenewton.common.identity import Identity, IdentityError, identity_of
from edgenewton.common.sealed_file import DamagedError, sealed_pem_kind
from edgenewton.common.tls import Stamp, TlsError, TlsFiles, check_dates, parse_certificates, stamp

from coordinator.identity.authority import CA_KEY_FILE, COORDINATORS_FOLDER, REVOKED_FILE
from coordinator.session.refusal import RefusedError, Status

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerTlsFiles:
    """Where a coordinator's files are."""

    tls: TlsFiles
    revoked: Path | None = None
    """Revocation list; None for none."""

    @classmethod
    def parse(cls, text: str) -> "ServerTlsFiles":
        """Return the files that an option names: a folder, or "CA,CERTIFICATE,KEY", perhaps with a fourth: the list.

        An authority's folder stands for its one coordinator; the authority's key is not read.

        Raises:
            TlsError: it is neither, or the authority has several coordinators or none.

        """
        if text.count(",") == 3:
            text, _, revoked = text.rpartition(",")
            return cls(TlsFiles.parse(text), Path(revoked.strip()))
        if "," in text:
            return cls(TlsFiles.parse(text))
        folder = Path(text)
        coordinators = sorted((folder / COORDINATORS_FOLDER).glob("*"))
        if len(coordinators) > 1:
            names = ", ".join(map(str, coordinators))
            raise TlsError(f"{folder} has several coordinators; name the folder of one of them: {names}")
        if coordinators:
            folder = coordinators[0]
        elif (folder / CA_KEY_FILE).exists():
            raise TlsError(
                f"{folder} has no coordinator yet; make one with `edge-coordinator ca issue NAME --server --host HOST`"
            )
        return cls(TlsFiles.in_folder(folder), folder / REVOKED_FILE)


class ServerTls:
    """What the files hold now; a file that was replaced counts from the next handshake, or the next `reread`, on.

    What cannot be read is logged, and what was read before goes on to count.

    Args:
        files: where the files are.

    Raises:
        TlsError: they cannot be used to begin with.

    """

    def __init__(self, files: ServerTlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._stamp = files.tls.stamp
        material = files.tls.read()
        self.identity = material.identity
        self._configuration = material.server_configuration()
        self._page: ssl.SSLContext | None = None
        self._page_stamp: Stamp = ()
        self._revoked_stamp: Stamp = ()
        self._revoked: frozenset[int] = frozenset()
        if files.revoked is not None:
            self._revoked_stamp = stamp(files.revoked)
            self._revoked = self._read_revoked(files.revoked)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return what a port takes: it asks for the files' content in each handshake."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._fetch_configuration,  # type: ignore[arg-type]  # None is for "no news"
            require_client_authentication=True,
        )

    def page_context(self) -> ssl.SSLContext:
        """Return what the page's server takes; it follows the files from the next `reread` on."""
        if self._page is None:
            self._page = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._files.tls.ca)
            self._page.verify_mode = ssl.CERT_REQUIRED
            self._load_page()
        return self._page

    def is_revoked(self, identity: Identity) -> bool:
        """Whether a certificate was revoked."""
        return identity.serial in self._revoked

    def reread(self) -> bool:
        """Read what was replaced, and return whether more is revoked now."""
        self._reload_page()
        path = self._files.revoked
        if path is None or (current := stamp(path)) == self._revoked_stamp:
            return False
        try:
            revoked = self._read_revoked(path)
        except TlsError as error:
            log.error("the revocation list is not reread: %s", error)
            return False
        finally:
            self._revoked_stamp = current
        is_more = not revoked <= self._revoked
        self._revoked = revoked
        return is_more

    def identify(self, auth_context: Any, now: dt.datetime) -> Identity:
        """Return who calls, from the certificate that the handshake has verified.

        Args:
            auth_context: of the call, as `grpc.aio.ServicerContext.auth_context` returns it.
            now: the time.

        Raises:
            RefusedError: the certificate names no identity, was revoked, or has expired meanwhile.

        """
        try:
            identity = self.named_by(auth_context)
        except IdentityError as error:
            raise RefusedError(Status.UNAUTHENTICATED, str(error)) from None
        fault = self.fault(identity, now)
        if fault:
            raise RefusedError(Status.UNAUTHENTICATED, fault)
        return identity

    def named_by(self, auth_context: Any) -> Identity:
        """Return whom the certificate of a call names, whether it counts or not.

        Raises:
            IdentityError: it names nobody.

        """
        (content,) = auth_context.get("x509_pem_cert") or (b"",)
        return _parse(bytes(content))

    def fault(self, identity: Identity, now: dt.datetime) -> str:
        """Return why a certificate counts no longer; an empty text if it does."""
        if self.is_revoked(identity):
            return revocation(identity)
        try:
            # A connection outlives the handshake that looked at the dates.
            check_dates("this connection", identity, now)
        except TlsError as error:
            return str(error)
        return ""

    def _load_page(self) -> None:
        assert self._page is not None
        tls = self._files.tls
        self._page_stamp = self._page_files_stamp()
        self._page.load_cert_chain(tls.certificate, tls.key)
        self._page.load_verify_locations(tls.ca)
        if self._files.revoked is not None:
            self._page.load_verify_locations(self._files.revoked)
            self._page.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF

    def _reload_page(self) -> None:
        if self._page is None or self._page_files_stamp() == self._page_stamp:
            return
        try:
            self._files.tls.read()  # the files may be half replaced
            self._load_page()
        except (TlsError, OSError) as error:
            log.error("the page's certificate is not reread: %s", error)

    def _page_files_stamp(self) -> Stamp:
        revoked = self._files.revoked
        return self._files.tls.stamp + (() if revoked is None else stamp(revoked))

    def _fetch_configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """Return new content of the files, or None; gRPC calls it in its own threads."""
        try:
            with self._lock:
                current = self._files.tls.stamp
                if current == self._stamp:
                    return None
                material = self._files.tls.read()
                self._stamp = current
                self.identity = material.identity
                log.info("the coordinator's new certificate is valid until %s", f"{material.identity.not_after:%F}")
                return material.server_configuration()
        except Exception as error:  # an exception would end the handshake; the files may be half replaced
            log.error("the coordinator's certificate is not reread: %s", error)
            return None

    def _read_revoked(self, path: Path) -> frozenset[int]:
        try:
            content = path.read_bytes()
            sealed_pem_kind(content)
            crl = x509.load_pem_x509_crl(content)
            authorities = parse_certificates(self._files.tls.ca, self._files.tls.ca.read_bytes())
        except OSError as error:
            raise TlsError(f"{error.filename} cannot be read: {error.strerror or error}") from None
        except DamagedError as error:
            raise TlsError(
                f"{path} is damaged: {error}; copy {REVOKED_FILE} anew from the authority's folder"
            ) from None
        except ValueError as error:
            raise TlsError(f"{path} holds no revocation list in PEM: {error}") from None
        if not any(crl.is_signature_valid(authority.public_key()) for authority in authorities):  # type: ignore[arg-type]
            raise TlsError(f"{path} is not signed by the authority in {self._files.tls.ca}")
        return frozenset(entry.serial_number for entry in crl)


def revocation(identity: Identity) -> str:
    """Return the sentence that tells a revoked identity so."""
    return f"the certificate of {identity} (serial {identity.serial:x}) was revoked"


@lru_cache(maxsize=4_096)
def _parse(content: bytes) -> Identity:
    try:
        return identity_of(x509.load_pem_x509_certificate(content))
    except ValueError as error:
        raise IdentityError(str(error)) from None
