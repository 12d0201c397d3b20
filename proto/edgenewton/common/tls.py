"""The three files with which a program shows who it is, and knows the coordinator: CA, certificate, private key."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from edgenewton.common.identity import Identity, IdentityError, identity_of
from edgenewton.common.sealed_file import DamagedError, sealed_pem_kind

CA_FILE = "ca.pem"
CERTIFICATE_FILE = "certificate.pem"
KEY_FILE = "key.pem"

_PUBLIC = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


Stamp = tuple[tuple[int, int, int] | None, ...]


class TlsError(ValueError):
    """Certificates or keys cannot be used; the text names the file and says what to do."""


@dataclass(frozen=True)
class TlsMaterial:
    """What the files hold, checked against each other."""

    ca: bytes
    """Certificates of the authorities that are trusted, in PEM."""
    certificate: bytes
    key: bytes
    identity: Identity

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return what a client's channel takes."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)

    def server_configuration(self) -> grpc.ServerCertificateConfiguration:
        """Return what a server's port takes; clients must have a certificate of the same authorities."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.ca)


@dataclass(frozen=True)
class TlsFiles:
    """Where the files are. They are read anew for each connection, so that they can be replaced at any time."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def in_folder(cls, folder: Path | str) -> Self:
        """Return the files of a folder, by the names that `edge-coordinator ca issue` gives them."""
        folder = Path(folder)
        return cls(folder / CA_FILE, folder / CERTIFICATE_FILE, folder / KEY_FILE)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the files that an option or a variable names: a folder, or "CA,CERTIFICATE,KEY".

        Raises:
            TlsError: it is neither.

        """
        parts = [part.strip() for part in text.split(",")]
        if len(parts) == 1 and parts[0]:
            return cls.in_folder(parts[0])
        if len(parts) == 3 and all(parts):
            return cls(*map(Path, parts))
        raise TlsError(f"{text!r} is neither a folder with certificates nor three files, CA,CERTIFICATE,KEY")

    @property
    def stamp(self) -> Stamp:
        """What changes when one of the files is replaced."""
        return stamp(self.ca, self.certificate, self.key)

    def read(self, now: dt.datetime | None = None) -> TlsMaterial:
        """Return what the files hold.

        Raises:
            TlsError: a file cannot be read, the certificate has expired, or the three do not belong together.

        """
        ca, certificate, key = (_read(path) for path in (self.ca, self.certificate, self.key))
        parsed = parse_certificates(self.certificate, certificate)[0]
        try:
            identity = identity_of(parsed)
        except IdentityError as error:
            raise TlsError(f"{self.certificate}: {error}") from None
        self._check_key(parsed, key)
        check_dates(str(self.certificate), identity, now or dt.datetime.now(dt.UTC))
        if not any(has_issued(authority, parsed) for authority in parse_certificates(self.ca, ca)):
            raise TlsError(
                f"{self.certificate} was not issued by the authority in {self.ca}; take all files from one folder that "
                "`edge-coordinator ca issue` wrote"
            )
        return TlsMaterial(ca, certificate, key, identity)

    def _check_key(self, certificate: x509.Certificate, content: bytes) -> None:
        try:
            key = serialization.load_pem_private_key(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise TlsError(f"{self.key} holds no private key in PEM without a password: {error}") from None
        if key.public_key().public_bytes(*_PUBLIC) != certificate.public_key().public_bytes(*_PUBLIC):
            raise TlsError(f"the key in {self.key} is not that of {self.certificate}; issue them together")


def open_channel(address: str, tls: TlsFiles | None, options: Sequence[tuple[str, int]] = ()) -> grpc.Channel:
    """Return a channel that connects when it is used.

    Args:
        address: of the coordinator, host:port.
        tls: this side's files; None for plaintext.
        options: of the channel.

    Raises:
        TlsError: the files cannot be used.

    """
    if tls is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, tls.read().channel_credentials(), options)


def parse_certificates(path: Path, content: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM file.

    Raises:
        TlsError: there is none.

    """
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise TlsError(f"{path} holds no certificate in PEM: {error}") from None


def check_dates(what: str, identity: Identity, now: dt.datetime) -> None:
    """Check that a certificate is valid now.

    Raises:
        TlsError: it has expired, or is not valid yet.

    """
    if now > identity.not_after:
        raise TlsError(
            f"{what}: the certificate of {identity} expired on {identity.not_after:%Y-%m-%d %H:%M} UTC; renew it with "
            "`edge-coordinator ca issue`"
        )
    if now < identity.not_before:
        raise TlsError(
            f"{what}: the certificate of {identity} is valid from {identity.not_before:%Y-%m-%d %H:%M} UTC on; is this "
            "machine's clock right?"
        )


def stamp(*paths: Path) -> Stamp:
    """Return what changes when one of the files is replaced; it need not exist."""
    return tuple(_stamp_of(path) for path in paths)


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ino, status.st_size)


def has_issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Tell whether one certificate's holder has issued and signed another."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        sealed_pem_kind(data)  # files that other tools wrote have no seal
    except OSError as error:
        raise TlsError(f"{path} cannot be read: {error.strerror or error}") from None
    except DamagedError as error:
        raise TlsError(
            f"{path} is damaged: {error}; copy it anew, or issue another with `edge-coordinator ca issue`"
        ) from None
    return data
