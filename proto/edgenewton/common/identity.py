"""Who a certificate speaks for: the SPIFFE id in its subjectAltName, such as `spiffe://edgenewton/device/gateway-7`.

One URI, as the SPIFFE X.509-SVID standard wants it. Labels are the organisational units of the subject.
"""

import datetime as dt
import re
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.x509.oid import NameOID

TRUST_DOMAIN = "edgenewton"
OPERATOR_LABEL = "operator"
"""Whoever has it may open and end sessions."""
MAX_NAME_LENGTH = 128
_NAME = re.compile(r"[A-Za-z0-9._-]+")


class IdentityError(ValueError):
    """A name or a certificate is no identity; the text says why."""


class Kind(StrEnum):
    """What an identity may do."""

    DEVICE = "device"
    """Takes part in sessions and watches them; with the label "operator" it also opens and ends them."""
    COORDINATOR = "coordinator"
    """Serves sessions."""


@dataclass(frozen=True)
class Identity:
    """What a certificate says of its holder."""

    kind: Kind
    name: str
    labels: frozenset[str]
    serial: int
    not_before: dt.datetime
    not_after: dt.datetime
    """The certificate has expired after this instant (UTC)."""

    @property
    def uri(self) -> str:
        """The SPIFFE id."""
        return uri_of(self.kind, self.name)

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name!r}"


def uri_of(kind: Kind, name: str) -> str:
    """Return the SPIFFE id of a name."""
    return f"spiffe://{TRUST_DOMAIN}/{kind.value}/{name}"


def check_name(name: str, what: str = "an identity's name") -> str:
    """Return a name that can stand in a SPIFFE id and name a folder.

    Raises:
        IdentityError: it cannot.

    """
    if not _NAME.fullmatch(name) or name in (".", "..") or len(name) > MAX_NAME_LENGTH:
        raise IdentityError(
            f"{what} has 1 to {MAX_NAME_LENGTH} letters, digits, dots, dashes and underscores; {name!r} has others"
        )
    return name


def identity_of(certificate: x509.Certificate) -> Identity:
    """Return whom a certificate names.

    Raises:
        IdentityError: it names nobody, or more than one.

    """
    subject = certificate.subject.rfc4514_string()
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        raise IdentityError(f"the certificate of {subject} has no subjectAltName") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise IdentityError(f"the certificate of {subject} names {len(uris)} URIs instead of one identity")
    parts = uris[0].removeprefix(f"spiffe://{TRUST_DOMAIN}/").split("/")
    try:
        kind, name = parts
        return Identity(
            kind=Kind(kind),
            name=check_name(name),
            labels=frozenset(_labels(certificate.subject)),
            serial=certificate.serial_number,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )
    except ValueError:
        raise IdentityError(
            f"the certificate of {subject} names {uris[0]!r}; expected {uri_of(Kind.DEVICE, 'NAME')!r} or the like"
        ) from None


def _labels(subject: x509.Name) -> list[str]:
    return [str(unit.value) for unit in subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)]
