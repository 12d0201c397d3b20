"""Masks: streams of integers that look random to whoever lacks their key: AES-256 in counter mode (NIST SP 800-38A)."""

import threading
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from edgenewton.secure_aggregation.modular_integers import Integers

_HALF = 8
"""Bytes of a counter block that name the stream; the other half counts the blocks of 16 bytes in it."""
_CHUNK_BYTES = 64 << 10
"""Drawn at once: so many stay in a core's own cache until they are added."""
_ZEROS = bytes(_CHUNK_BYTES)


class MaskKey:
    """Draws the masks of one pair of devices, or of one device, in one step. One thread at a time may use it.

    Args:
        key: 32 bytes.

    """

    def __init__(self, key: bytes) -> None:
        # Made once: a new one for each vector would take longer than the masks of a short one.
        self._cipher = Cipher(AES256(key), CTR(bytes(2 * _HALF))).encryptor()

    def draw(self, stream: int, length: int, word: np.dtype[np.unsignedinteger[Any]]) -> Integers:
        """Return the first integers of a stream, of all bits of their type.

        Args:
            stream: its number, from 0 to below 2^64; each is used for one vector alone.
            length: how many integers.
            word: their type.

        """
        drawn = np.zeros(length, word)
        self.apply(np.add, stream, drawn)
        return drawn

    def apply(self, change: np.ufunc, stream: int, values: Integers) -> None:
        """Add the first integers of a stream to others, or subtract them, in place, modulo 2 to all bits of their type.

        Args:
            change: `np.add` or `np.subtract`.
            stream: its number, from 0 to below 2^64; each is used for one vector alone.
            values: the others.

        """
        self._cipher.reset_nonce(stream.to_bytes(_HALF, "big") + bytes(_HALF))
        word, count = values.dtype, _CHUNK_BYTES // values.itemsize
        drawn = np.frombuffer(_scratch.buffer, word.newbyteorder("<"), count)
        for begin in range(0, len(values), count):
            part = values[begin : begin + count]
            self._cipher.update_into(_ZEROS[: part.nbytes], _scratch.buffer)
            change(part, drawn[: len(part)], out=part)


class _Scratch(threading.local):
    """Where a thread draws masks."""

    def __init__(self) -> None:
        self.buffer = bytearray(_CHUNK_BYTES + 2 * _HALF)  # a cipher wants room for a block more


_scratch = _Scratch()


def keystream(key: bytes, counter: bytes, size: int) -> bytes:
    """Return so many bytes of AES-256 in counter mode, from a first counter block of 16 bytes on."""
    return Cipher(AES256(key), CTR(counter)).encryptor().update(bytes(size))
