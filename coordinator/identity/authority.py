"""A certificate authority in a folder: issues and revokes the certificates of devices and coordinators.

    FOLDER/ca.pem, ca.key        the authority; the key is needed to issue and to revoke, and by nothing else
    FOLDER/ledger.json           what was issued and revoked
    FOLDER/revoked.pem           the revocation list (an X.509 CRL)
    FOLDER/devices/NAME/         ca.pem, certificate.pem and key.pem of a device
    FOLDER/coordinators/NAME/    the same of a coordinator, and revoked.pem, which it rereads

Keys are ECDSA over P-256. All files are for their owner alone.
"""

import datetime as dt
import ipaddress
import logging
import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from edgenewton.common import sealed_file
from edgenewton.common.files import write_atomically
from edgenewton.common.identity import IdentityError, Kind, check_name, identity_of, uri_of
from edgenewton.common.sealed_file import DamagedError, seal_pem, sealed_pem_kind
from edgenewton.common.tls import CA_FILE, CERTIFICATE_FILE, KEY_FILE
from filelock import FileLock, Timeout

from coordinator.identity.ledger import Entry, Ledger

log = logging.getLogger(__name__)

CA_KEY_FILE = "ca.key"
LEDGER_FILE = "ledger.json"
REVOKED_FILE = "revoked.pem"
COORDINATORS_FOLDER = "coordinators"
DEFAULT_HOSTS = ("localhost", "127.0.0.1", "::1")

_CLOCK_SKEW = dt.timedelta(minutes=5)
"""Clocks of devices are wrong by some minutes; certificates count from so much earlier on."""
_LOCK_TIMEOUT_S = 10.0


class AuthorityError(RuntimeError):
    """The authority cannot do this; the text says why."""


class Authority:
    """The certificate authority in a folder.

    Raises:
        AuthorityError: there is none, or its key cannot be used.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.certificate = x509.load_pem_x509_certificate(_read_checked(folder / CA_FILE))
            key = serialization.load_pem_private_key(_read_checked(folder / CA_KEY_FILE), password=None)
        except FileNotFoundError as error:
            raise AuthorityError(
                f"{error.filename} is missing; make an authority with `edge-coordinator ca init`"
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise AuthorityError(f"the authority in {folder} cannot be read: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityError(f"{folder / CA_KEY_FILE} is no elliptic-curve key")
        self._key = key

    @classmethod
    def create(cls, folder: Path, years: int = 10) -> "Authority":
        """Make a new authority.

        Raises:
            AuthorityError: there is one already, or the folder cannot be written.

        """
        if (folder / CA_KEY_FILE).exists() or (folder / CA_FILE).exists():
            raise AuthorityError(f"{folder} has an authority already; all its devices trust that one")
        now = dt.datetime.now(dt.UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"EdgeNewton authority {secrets.token_hex(4)}")])
        certificate = (
            _builder(name, name, key.public_key(), now, now + dt.timedelta(days=365 * years))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
            .sign(key, hashes.SHA256())
        )
        try:
            _make_folder(folder)
            write_atomically(folder / CA_KEY_FILE, _key_pem(key), mode=0o600)
            write_atomically(folder / CA_FILE, _pem(certificate), mode=0o600)
        except OSError as error:
            raise AuthorityError(f"{folder} cannot be written: {error.strerror or error}") from None
        authority = cls(folder)
        with authority._ledger() as ledger:
            authority._write_revoked(ledger, now)
        return authority

    def issue(
        self,
        kind: Kind,
        name: str,
        lifetime: dt.timedelta,
        *,
        labels: Collection[str] = (),
        hosts: Sequence[str] = (),
        now: dt.datetime | None = None,
    ) -> Path:
        """Issue a certificate with a new key, and return its folder; an earlier one of the name is replaced.

        The earlier one goes on to count until it expires or is revoked.

        Args:
            kind: what its holder may do.
            name: of the holder; for a device its id.
            lifetime: from now on.
            labels: by which sessions can admit it.
            hosts: names and addresses at which a coordinator is found.
            now: the time.

        Raises:
            AuthorityError: the name, a label or a host is impossible, or the certificate would outlive the authority.

        """
        now = now or dt.datetime.now(dt.UTC)
        end = now + lifetime
        if end > self.certificate.not_valid_after_utc:
            last = f"{self.certificate.not_valid_after_utc:%Y-%m-%d}"
            raise AuthorityError(f"the authority itself is valid until {last}; ask for a shorter lifetime")
        try:
            check_name(name, f"the name of a {kind.value}")
            units = [check_name(label, "a label") for label in labels]
        except IdentityError as error:
            raise AuthorityError(str(error)) from None
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                *(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units),
                # RFC 5280 ends common names at 64 characters; who it is stands in the subjectAltName.
                x509.NameAttribute(NameOID.COMMON_NAME, name[:64]),
            ]
        )
        is_server = kind is Kind.COORDINATOR
        usage = ExtendedKeyUsageOID.SERVER_AUTH if is_server else ExtendedKeyUsageOID.CLIENT_AUTH
        names = [x509.UniformResourceIdentifier(uri_of(kind, name)), *map(_general_name, hosts)]
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key(), now, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage("digital_signature"), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        folder = self._folder_of(kind, name)
        with self._ledger() as ledger:
            ledger.add(Entry.of(identity_of(certificate)))
            _make_folder(folder)
            # The certificate goes last: until then, what reads the folder finds that the key is not its own.
            write_atomically(folder / CA_FILE, _pem(self.certificate), mode=0o600)
            write_atomically(folder / KEY_FILE, _key_pem(key), mode=0o600)
            write_atomically(folder / CERTIFICATE_FILE, _pem(certificate), mode=0o600)
            if is_server:
                self._write_revoked(ledger, now)
        return folder

    def revoke(
        self, kind: Kind, name: str, *, keep_latest: bool = False, now: dt.datetime | None = None
    ) -> list[Entry]:
        """Revoke the certificates of a name, and return them.

        Args:
            kind: of the holder.
            name: of the holder.
            keep_latest: leaves the one that was issued last.
            now: the time.

        Raises:
            AuthorityError: there is none to revoke.

        """
        now = now or dt.datetime.now(dt.UTC)
        with self._ledger() as ledger:
            own = [entry for entry in ledger.entries if (entry.kind, entry.name) == (kind, name)]
            entries = [entry for entry in (own[:-1] if keep_latest else own) if entry.state(now) == "valid"]
            if not entries:
                what = "older certificate" if keep_latest else "valid certificate"
                raise AuthorityError(f"no {what} of {kind.value} {name!r} was issued by {self.folder}")
            ledger.revoke({entry.serial for entry in entries}, now)
            self._write_revoked(ledger, now)
        return entries

    def entries(self) -> list[Entry]:
        """Return what was issued, the oldest first."""
        ledger = Ledger(self.folder / LEDGER_FILE)
        if ledger.lacks_last:
            with self._ledger() as ledger:
                return ledger.entries
        return ledger.entries

    @contextmanager
    def _ledger(self) -> Iterator[Ledger]:
        try:
            with FileLock(self.folder / ".lock", timeout=_LOCK_TIMEOUT_S, mode=0o600):
                ledger = Ledger(self.folder / LEDGER_FILE)
                if ledger.lacks_last:
                    revoked = {f"{entry.serial_number:x}" for entry in self._last_revoked()}
                    ledger.complete(self._issued(), revoked, dt.datetime.now(dt.UTC))
                yield ledger
        except Timeout:
            raise AuthorityError(f"another command works on {self.folder}; try again") from None
        except OSError as error:
            raise AuthorityError(f"{self.folder} cannot be written: {error.strerror or error}") from None

    def _folder_of(self, kind: Kind, name: str) -> Path:
        return self.folder / f"{kind.value}s" / name

    def _write_revoked(self, ledger: Ledger, now: dt.datetime) -> None:
        # It says all that is known until a newer one is written, so it never runs out before the authority.
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now)
            .next_update(self.certificate.not_valid_after_utc)
        )
        known = {int(entry.serial, 16) for entry in ledger.entries}
        # What was revoked once stays so, whatever becomes of the ledger.
        for revoked in self._last_revoked():
            if revoked.serial_number not in known:
                builder = builder.add_revoked_certificate(revoked)
        for entry in ledger.entries:
            if entry.revoked_at is not None:
                builder = builder.add_revoked_certificate(
                    x509.RevokedCertificateBuilder()
                    .serial_number(int(entry.serial, 16))
                    .revocation_date(entry.revoked_at)
                    .build()
                )
        content = seal_pem(
            builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
            sealed_file.Kind.REVOCATION_LIST,
        )
        for folder in (self.folder, *sorted((self.folder / COORDINATORS_FOLDER).glob("*"))):
            write_atomically(folder / REVOKED_FILE, content, mode=0o600)

    def _last_revoked(self) -> list[x509.RevokedCertificate]:
        """Return what the last revocation list says; nothing if there is none, or it is damaged."""
        path = self.folder / REVOKED_FILE
        try:
            crl = x509.load_pem_x509_crl(_read_checked(path))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            log.warning("%s is damaged, and is written anew from the ledger: %s", path, error)
            return []
        return list(crl) if crl.is_signature_valid(self._key.public_key()) else []

    def _issued(self) -> list[Entry]:
        """Return the entries of the certificates that are in the folders."""
        entries = []
        for path in sorted(self.folder.glob(f"*/*/{CERTIFICATE_FILE}")):
            try:
                certificate = x509.load_pem_x509_certificate(_read_checked(path))
                certificate.verify_directly_issued_by(self.certificate)
                entries.append(Entry.of(identity_of(certificate)))
            except (OSError, ValueError, TypeError, InvalidSignature) as error:
                log.warning("%s cannot be read: %s", path, error)
        return entries


def _read_checked(path: Path) -> bytes:
    data = path.read_bytes()
    try:
        sealed_pem_kind(data)
    except DamagedError as error:
        raise ValueError(f"{path} is damaged: {error}; take it from a backup of the folder") from None
    return data


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: dt.datetime, end: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*allowed: str) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in allowed for name in names})


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise AuthorityError(f"{host!r} is neither a host's name nor an address") from None


def _make_folder(folder: Path) -> None:
    for part in (folder.parent, folder):
        if not part.exists():
            part.mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)


def _pem(certificate: x509.Certificate) -> bytes:
    return seal_pem(certificate.public_bytes(serialization.Encoding.PEM), sealed_file.Kind.CERTIFICATE)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return seal_pem(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        sealed_file.Kind.PRIVATE_KEY,
    )
