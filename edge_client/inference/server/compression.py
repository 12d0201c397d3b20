"""Compressed bodies, both ways: gzip and deflate (RFC 9110, section 8.4.1; deflate is zlib's format)."""

import zlib
from collections.abc import Callable

from edge_client.inference.errors import BadRequestError, TooLargeError

CODINGS = ("gzip", "deflate")
WORTH_BYTES = 1024
"""A smaller answer is sent as it is: it would hardly become smaller, and later."""
_LEVEL = 1
"""zlib's quickest: a device answers in less time, and numbers hardly become smaller with a slower one."""
_PIECE = 64 << 10


def coding_of(content_encoding: str) -> str:
    """Return the coding of a body; empty if it is sent as it is.

    Args:
        content_encoding: value of the header.

    Raises:
        BadRequestError: the coding is unknown, or there are several.

    """
    coding = content_encoding.strip().lower().removeprefix("x-")
    if coding in ("", "identity"):
        return ""
    if coding not in CODINGS:
        raise BadRequestError(
            f"the body's Content-Encoding {content_encoding[:40]!r} is unknown: send it as {' or '.join(CODINGS)}, or "
            "as it is"
        )
    return coding


def unpack(packed: bytes, coding: str, limit: int, take: Callable[[int], None]) -> bytes:
    """Return an unpacked body; what is too large is given up at the limit, before the rest of it is unpacked.

    Args:
        packed: the body.
        coding: of `CODINGS`.
        limit: bytes of the unpacked body at most.
        take: told of the bytes that are taken next; may raise.

    Raises:
        BadRequestError: it is not in the coding, ends too early, or goes on behind its end.
        TooLargeError: it unpacks to more than the limit.

    """
    unpacker = zlib.decompressobj(_wbits(coding))
    pieces: list[bytes] = []
    size = 0
    try:
        while not unpacker.eof:
            take(2 * _PIECE)  # as pieces, and as a whole
            pieces.append(unpacker.decompress(packed, _PIECE))
            packed = unpacker.unconsumed_tail
            size += len(pieces[-1])
            if size > limit:
                raise TooLargeError(f"the body unpacks to more than {limit} bytes, which are the limit")
            if not pieces[-1] and not packed and not unpacker.eof:
                raise BadRequestError(f"the body's {coding} ends too early")
    except zlib.error as error:
        raise BadRequestError(f"the body is not {coding}, as its Content-Encoding says: {error}") from None
    if unpacker.unused_data:
        raise BadRequestError(f"the body goes on behind the end of its {coding}")
    return b"".join(pieces)


def accepted_coding(accept_encoding: str) -> str:
    """Return the coding that an answer is to have; empty for none.

    Args:
        accept_encoding: value of the header: codings with weights, "gzip;q=0.5, deflate".

    """
    best, best_weight = "", 0.0
    for part in accept_encoding.lower().split(",")[:16]:
        coding, _, parameter = part.partition(";")
        coding = coding.strip().removeprefix("x-")
        if coding in CODINGS and (weight := _weight(parameter)) > best_weight:
            best, best_weight = coding, weight
    return best


def pack(content: bytes, coding: str) -> bytes:
    """Return a body in a coding of `CODINGS`."""
    packer = zlib.compressobj(_LEVEL, wbits=_wbits(coding))
    return packer.compress(content) + packer.flush()


def _weight(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0


def _wbits(coding: str) -> int:
    """Return how zlib's functions call a coding."""
    return 16 + zlib.MAX_WBITS if coding == "gzip" else zlib.MAX_WBITS
