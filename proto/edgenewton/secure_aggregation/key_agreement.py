"""Keys that two devices agree on, whoever carries their messages: X25519 (RFC 7748) and HKDF (RFC 5869)."""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PUBLIC_LENGTH = 32
KEY_LENGTH = 32


class KeyAgreementError(ValueError):
    """A public key that gives no common secret."""


def public_key(private: bytes) -> bytes:
    """Return the public key (32 bytes) of a private one: 32 random bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """Return the key (32 bytes) that this device has in common with the holder of another public key.

    Args:
        private: this device's key, 32 bytes.
        public: the other's key, 32 bytes.
        purpose: what the key is for; both sides say the same. Keys for different purposes are unrelated.

    Raises:
        KeyAgreementError: the public key is none, or one of the few that give everybody the same secret.

    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise KeyAgreementError(f"{public.hex()} is no public key of X25519 with which a secret can be had") from error
    return derive(shared, purpose)


def derive(secret: bytes, purpose: bytes) -> bytes:
    """Return a key (32 bytes) for a purpose, from a secret."""
    return HKDF(SHA256(), KEY_LENGTH, salt=None, info=purpose).derive(secret)
