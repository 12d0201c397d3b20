"""Keys that two devices agree on, whoever carries their messages: X25519 (RFC 7748) and HKDF (RFC 5869)."""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PUBLIC_LENGTH = 32
KEY_LENGTH = 32


class KeyAgreementError(ValueError):
    """A public key that gives no common secret."""


class PrivateKey:
    """A private key, made ready once for all that is agreed on with it: that takes as long as to agree.

    Args:
        private: 32 random bytes.

    """

    def __init__(self, private: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()
        """The public key, 32 bytes."""

    def agree(self, public: bytes, purpose: bytes) -> bytes:
        """Return the key (32 bytes) that this device has in common with the holder of another public key.

        Args:
            public: the other's key, 32 bytes.
            purpose: what the key is for; both sides say the same. Keys for different purposes are unrelated.

        Raises:
            KeyAgreementError: the public key is none, or one of the few that give everybody the same secret.

        """
        try:
            shared = self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            text = f"{public.hex()} is no public key of X25519 with which a secret can be had"
            raise KeyAgreementError(text) from error
        return derive(shared, purpose)


def public_key(private: bytes) -> bytes:
    """Return the public key (32 bytes) of a private one: 32 random bytes."""
    return PrivateKey(private).public


def agree(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """Return the key that a private one (32 bytes) has in common with a public one: see `PrivateKey.agree`."""
    return PrivateKey(private).agree(public, purpose)


def derive(secret: bytes, purpose: bytes) -> bytes:
    """Return a key (32 bytes) for a purpose, from a secret."""
    return HKDF(SHA256(), KEY_LENGTH, salt=None, info=purpose).derive(secret)
