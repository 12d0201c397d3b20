"""Who vouches for a device's channel key: its certificate, so that a coordinator cannot pass on a key of its own."""

import datetime as dt
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from edgenewton.common.identity import IdentityError, Kind, identity_of
from edgenewton.common.tls import TlsError, TlsMaterial, check_dates, has_issued
from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.v1 import exchange_pb2 as pb

MAX_CERTIFICATES = 4
"""In a chain, from the device's own on."""
_PSS = padding.PSS(padding.MGF1(SHA256()), padding.PSS.DIGEST_LENGTH)


def signed_channel_key(material: TlsMaterial, session: str, key: pb.ChannelKey) -> pb.ChannelKey:
    """Return a device's channel key with its certificates and a signature.

    Args:
        material: the device's certificate and key.
        session: the session that the key is for.
        key: the key.

    Raises:
        TlsError: keys of this kind cannot sign here.

    """
    chain = x509.load_pem_x509_certificates(material.certificate)[:MAX_CERTIFICATES]
    return pb.ChannelKey(
        device=key.device,
        public=key.public,
        certificates=[certificate.public_bytes(serialization.Encoding.DER) for certificate in chain],
        signature=_sign(material.key, _text(session, key.device, key.public)),
    )


class ChannelKeyCheck:
    """Checks the channel keys that a coordinator passes on.

    Args:
        material: with the authorities that this device trusts.

    """

    def __init__(self, material: TlsMaterial) -> None:
        self._authorities = x509.load_pem_x509_certificates(material.ca)

    def __call__(self, session: str, key: pb.ChannelKey) -> None:
        """Check that the certificate of a key's device vouches for it.

        Raises:
            SecureAggregationError: it does not, or is not of an authority that this device trusts.

        """
        device = key.device
        try:
            chain = [x509.load_der_x509_certificate(data) for data in key.certificates[:MAX_CERTIFICATES]]
        except ValueError as error:
            raise SecureAggregationError(
                device, f"has a channel key with a certificate that is none: {error}"
            ) from None
        if not chain:
            raise SecureAggregationError(device, "has a channel key that no certificate vouches for; it needs TLS, too")
        try:
            identity = identity_of(chain[0])
            check_dates(f"the certificate of device {device!r}", identity, dt.datetime.now(dt.UTC))
        except (IdentityError, TlsError) as error:
            raise SecureAggregationError(device, f"has a channel key with a wrong certificate: {error}") from None
        if identity.kind is not Kind.DEVICE or identity.name != device:
            raise SecureAggregationError(device, f"has a channel key with the certificate of {identity}")
        if not self._is_trusted(chain):
            raise SecureAggregationError(device, "has a channel key with a certificate of an unknown authority")
        if not _is_signed(chain[0].public_key(), key.signature, _text(session, device, key.public)):
            raise SecureAggregationError(device, "has a channel key that its certificate's key did not sign")

    def _is_trusted(self, chain: list[x509.Certificate]) -> bool:
        for certificate, issuer in pairwise(chain):
            if any(has_issued(authority, certificate) for authority in self._authorities):
                return True
            if not (_is_authority(issuer) and has_issued(issuer, certificate)):
                return False
        return any(has_issued(authority, chain[-1]) for authority in self._authorities)


def _text(session: str, device: str, public: bytes) -> bytes:
    return "\0".join(("edgenewton channel key", session, device, "")).encode() + public


def _sign(key: bytes, text: bytes) -> bytes:
    private = load_pem_private_key(key, password=None)
    match private:
        case ec.EllipticCurvePrivateKey():
            return private.sign(text, ec.ECDSA(SHA256()))
        case ed25519.Ed25519PrivateKey():
            return private.sign(text)
        case rsa.RSAPrivateKey():
            return private.sign(text, _PSS, SHA256())
    raise TlsError(f"a key of the kind {type(private).__name__} cannot sign a channel key; take EC, Ed25519 or RSA")


def _is_signed(public: object, signature: bytes, text: bytes) -> bool:
    try:
        match public:
            case ec.EllipticCurvePublicKey():
                public.verify(signature, text, ec.ECDSA(SHA256()))
            case ed25519.Ed25519PublicKey():
                public.verify(signature, text)
            case rsa.RSAPublicKey():
                public.verify(signature, text, _PSS, SHA256())
            case _:
                return False
    except InvalidSignature:
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (x509.ExtensionNotFound, ValueError):
        return False
