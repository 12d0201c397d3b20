"""Masks: streams of integers that look random to whoever lacks their key: AES-256 in counter mode (NIST SP 800-38A)."""

from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from edgenewton.secure_aggregation.modular_integers import Integers

_HALF = 8
"""Bytes of a counter block that name the stream; the other half counts the blocks of 16 bytes in it."""


class MaskKey:
    """Draws the masks of one pair of devices, or of one device, in one step. One thread at a time may use it.

    Args:
        key: 32 bytes.

    """

    def __init__(self, key: bytes) -> None:
        # Made once: a new one for each vector would take longer than the masks of a short one.
        self._cipher = Cipher(AES256(key), CTR(bytes(2 * _HALF))).encryptor()

    def draw(self, stream: int, length: int, word: np.dtype[np.unsignedinteger[Any]]) -> Integers:
        """Return the first integers of a stream, of all bits of their type; they cannot be written to.

        Args:
            stream: its number, from 0 to below 2^64; each is used for one vector alone.
            length: how many integers.
            word: their type.

        """
        self._cipher.reset_nonce(stream.to_bytes(_HALF, "big") + bytes(_HALF))
        return np.frombuffer(self._cipher.update(bytes(length * word.itemsize)), word.newbyteorder("<"))


def keystream(key: bytes, counter: bytes, size: int) -> bytes:
    """Return so many bytes of AES-256 in counter mode, from a first counter block of 16 bytes on."""
    return Cipher(AES256(key), CTR(counter)).encryptor().update(bytes(size))
