"""A device's state on its way to others that need it, which nobody reads who only carries it."""

from collections.abc import Mapping
from os import urandom

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.secure_aggregation.key_agreement import KEY_LENGTH, derive

PART_BYTES = 64 << 20
"""Sealed at once; each part is 16 bytes longer than what is in it."""
_TAG_BYTES = 16


def seal_state(
    state: bytes, session: str, step: int, donor: str, secrets: Mapping[str, bytes]
) -> tuple[bytes, dict[str, bytes]]:
    """Return a state under a fresh key, and the key for each reader (48 bytes).

    Args:
        state: as its donor dumped it.
        session: its name.
        step: the first step that is to be taken from it.
        donor: whose it is.
        secrets: for each reader the secret that the donor has in common with it: `channel_secret`.

    """
    key, context = urandom(KEY_LENGTH), _context(session, step, donor)
    cipher = AESGCM(key)
    parts = [state[begin : begin + PART_BYTES] for begin in range(0, max(len(state), 1), PART_BYTES)]
    sealed = [cipher.encrypt(_nonce(number, len(parts)), part, context) for number, part in enumerate(parts)]
    boxes = {
        reader: AESGCM(_box_key(secret, context, reader, sealed[0])).encrypt(bytes(12), key, context)
        for reader, secret in secrets.items()
    }
    return b"".join(sealed), boxes


def open_state(sealed: bytes, session: str, step: int, donor: str, reader: str, secret: bytes, box: bytes) -> bytes:
    """Return the state in what `seal_state` gave for a reader.

    Raises:
        SecureAggregationError: the donor did not seal it for this reader, this session and this step.

    """
    context = _context(session, step, donor)
    size = PART_BYTES + _TAG_BYTES
    parts = [sealed[begin : begin + size] for begin in range(0, max(len(sealed), 1), size)]
    try:
        key = AESGCM(_box_key(secret, context, reader, parts[0])).decrypt(bytes(12), box, context)
        cipher = AESGCM(key)
        opened = [cipher.decrypt(_nonce(number, len(parts)), part, context) for number, part in enumerate(parts)]
    except (InvalidTag, ValueError):
        text = f"did not itself seal the state of step {step} that came in its name for {reader!r}"
        raise SecureAggregationError(donor, text) from None
    return b"".join(opened)


def _context(session: str, step: int, donor: str) -> bytes:
    return "\0".join(("edgenewton state", session, str(step), donor)).encode()


def _box_key(secret: bytes, context: bytes, reader: str, first_part: bytes) -> bytes:
    # The tag of the first part differs for each state, so that no key of a box is used for two.
    return derive(secret, context + b"\0" + reader.encode() + b"\0" + first_part[-_TAG_BYTES:])


def _nonce(number: int, count: int) -> bytes:
    # With their count, so that none can be left out at the end.
    return number.to_bytes(6, "big") + count.to_bytes(6, "big")
