"""Masks: streams of integers that look random to whoever lacks their key: AES-256 in counter mode (NIST SP 800-38A)."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from edgenewton.secure_aggregation.modular_integers import Integers

_HALF = 8
"""Bytes of a counter block that name the stream; the other half counts the blocks of 16 bytes in it."""
_CHUNK_BYTES = 128 << 10
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
        change_by_masks(drawn, stream, added=[self])
        return drawn

    def begin(self, counter: bytes) -> None:
        """Begin a stream, with its first counter block."""
        self._cipher.reset_nonce(counter)

    def go_on(self, into: bytearray, size: int) -> None:
        """Write the next bytes of the stream, at most `_CHUNK_BYTES`."""
        self._cipher.update_into(_ZEROS[:size], into)


def change_by_masks(
    values: Integers, stream: int, *, added: Sequence[MaskKey] = (), subtracted: Sequence[MaskKey] = ()
) -> None:
    """Add the masks of some keys to integers, and subtract those of others; in place, all bits of the integers' type.

    Args:
        values: the integers.
        stream: number of the masks, from 0 to below 2^64; each is used for one vector alone.
        added: keys of the masks that are added.
        subtracted: keys of those that are subtracted.

    """
    counter = stream.to_bytes(_HALF, "big") + bytes(_HALF)
    for key in (*added, *subtracted):
        key.begin(counter)
    drawn = np.frombuffer(_scratch.buffer, values.dtype.newbyteorder("<"), _CHUNK_BYTES // values.itemsize)
    for begin in range(0, len(values), len(drawn)):
        part = values[begin : begin + len(drawn)]
        masks = drawn[: len(part)]
        for key in added:
            key.go_on(_scratch.buffer, part.nbytes)
            part += masks
        for key in subtracted:
            key.go_on(_scratch.buffer, part.nbytes)
            part -= masks


class _Scratch(threading.local):
    """Where a thread draws masks."""

    def __init__(self) -> None:
        self.buffer = bytearray(_CHUNK_BYTES + 2 * _HALF)  # some versions of the cipher want room for a block more


_scratch = _Scratch()


def keystream(key: bytes, counter: bytes, size: int) -> bytes:
    """Return so many bytes of AES-256 in counter mode, from a first counter block of 16 bytes on."""
    return Cipher(AES256(key), CTR(counter)).encryptor().update(bytes(size))
