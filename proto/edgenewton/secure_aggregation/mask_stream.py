"""Masks: streams of integers that look random to whoever lacks their key: AES-256 in counter mode (NIST SP 800-38A)."""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from edgenewton.secure_aggregation.modular_integers import Integers, word_of

_HALF = 8
"""Bytes of a counter block that name the stream; the other half counts the blocks of 16 bytes in it."""


def mask(key: bytes, stream: int, length: int, bits: int) -> Integers:
    """Return the first integers of a stream, modulo 2^bits, in the narrowest type that holds them.

    Args:
        key: 32 bytes, for the masks of one pair of devices, or of one device, in one step.
        stream: its number, from 0 to below 2^64; each is used for one vector alone.
        length: how many integers.
        bits: of each, 1 to 64.

    """
    word = word_of(bits)
    drawn = keystream(key, stream.to_bytes(_HALF, "big") + bytes(_HALF), length * word.itemsize)
    integers: Integers = np.frombuffer(drawn, word.newbyteorder("<")).astype(word)
    integers &= word.type((1 << bits) - 1)
    return integers


def keystream(key: bytes, counter: bytes, size: int) -> bytes:
    """Return so many bytes of AES-256 in counter mode, from a first counter block of 16 bytes on."""
    return Cipher(AES256(key), CTR(counter)).encryptor().update(bytes(size))
