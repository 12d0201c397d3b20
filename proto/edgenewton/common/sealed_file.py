"""Seals: the digest that every file carries, in a form that leaves it what it is for other programs.

A seal is a text in the file that names the kind of the file and the SHA-256 of the whole file, computed with zeros in
the digest's own place:

    edgenewton-seal:KIND:sha256:64-HEXADECIMAL-DIGITS:edgenewton-sealed

It stands where the format has room: in the comment of a zip archive (what torch saves), in the metadata of safetensors,
as the last key of a JSON object, in a line after the last block of PEM, behind an ExecuTorch program. A file without
either end of a seal was not sealed: an earlier release wrote it, or another program. One that has only one of them is
damaged; so a flipped bit anywhere in the file, the seal included, is noticed. A seal tells damage, not forgery.
"""

import errno
import hashlib
import json
import logging
import re
import struct
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from edgenewton.common.files import previous_of, set_aside, sync_folder

log = logging.getLogger(__name__)

T = TypeVar("T")

KEY = "seal"
"""Of a seal in JSON, and in the metadata of safetensors."""

_BEGIN, _END = b"edgenewton-seal:", b":edgenewton-sealed"
_SEAL = re.compile(_BEGIN + rb"([a-z-]{1,32}):sha256:([0-9a-f]{64})" + _END)
_ZEROS = b"0" * 64
_TAIL = 4_096
"""Bytes at the end of a file in which its seal is, unless it is of safetensors, which have it in their header."""
_ZIP_END, _ZIP_END_SIZE = b"PK\x05\x06", 22
_PEM_BEGIN = b"-----BEGIN "
_MAX_HEADER = 100_000_000
"""Bytes of a safetensors header, as the format bounds it."""


class Kind(StrEnum):
    """What a sealed file is."""

    DEVICE_STATE = "device-state"
    MODEL = "model"
    EXECUTORCH_MODEL = "executorch-model"
    MODEL_MANIFEST = "model-manifest"
    SERVING_VERSION = "serving-version"
    ROUND_WEIGHTS = "round-weights"
    RUN_HISTORY = "run-history"
    TASK_DATA = "task-data"
    LEDGER = "ledger"
    CERTIFICATE = "certificate"
    PRIVATE_KEY = "private-key"
    REVOCATION_LIST = "revocation-list"


class DamagedError(ValueError):
    """A file is not as it was written; the text says how that shows, without the file's name."""


class OtherKindError(ValueError):
    """A file is whole, but something else than what was expected; the text says what."""


# ---------------------------------------------------------------------- sealing


def blank_seal(kind: Kind) -> str:
    """Return the seal of a file that is being made, for `fill` to put the digest in."""
    return f"{_BEGIN.decode()}{kind}:sha256:{_ZEROS.decode()}{_END.decode()}"


def fill(data: bytes) -> bytes:
    """Put the digest of a file's content in its blank seal."""
    begin, end = _place(data)
    return b"".join((memoryview(data)[:begin], hashlib.sha256(data).hexdigest().encode(), memoryview(data)[end:]))


def seal_zip(data: bytes, kind: Kind) -> bytes:
    """Return a zip archive with a seal for its comment, in place of none."""
    comment = blank_seal(kind).encode()
    if data[-_ZIP_END_SIZE:][:4] != _ZIP_END or data[-2:] != b"\0\0":
        raise ValueError("these bytes are no zip archive without a comment")
    return fill(data[:-2] + struct.pack("<H", len(comment)) + comment)


def seal_json(content: Mapping[str, Any], kind: Kind, indent: int | None = None) -> bytes:
    """Return a JSON object as a line, or lines, with a seal for its last key."""
    return fill((json.dumps({**content, KEY: blank_seal(kind)}, indent=indent) + "\n").encode())


def seal_pem(data: bytes, kind: Kind) -> bytes:
    """Return PEM blocks with a seal in a line behind them, which readers of PEM pass over."""
    return fill(data + f"# {blank_seal(kind)}\n".encode())


def seal_behind(data: bytes, kind: Kind) -> bytes:
    """Return a file of a format whose readers pass over what stands behind it, with a seal there."""
    return fill(data + blank_seal(kind).encode())


# ---------------------------------------------------------------------- checking


def sealed_kind(data: bytes) -> str | None:
    """Return what a whole file is by its seal; None if it has none.

    Raises:
        DamagedError: the file is not what was sealed.

    """
    if not data:
        raise DamagedError("it is empty")
    region = _region(data)
    if _BEGIN not in region and _END not in region:
        return None
    begin, end = _place(data)
    digest = hashlib.sha256(memoryview(data)[:begin])
    digest.update(_ZEROS)
    digest.update(memoryview(data)[end:])
    if digest.hexdigest().encode() != data[begin:end]:
        raise DamagedError("its content does not have the digest that was saved with it")
    return claimed_kind(data)


def claimed_kind(data: bytes) -> str | None:
    """Return what a file says that it is, whole or damaged; None if it does not say."""
    found = _SEAL.search(_region(data))
    return found[1].decode() if found else None


def sealed_pem_kind(data: bytes) -> str | None:
    """Return what a whole file of PEM blocks is by its seal, the last one if it was put together from several files.

    Each seal covers the blocks before it, so that files may be joined, and text may stand before them.

    Raises:
        DamagedError: the file is not what was sealed.

    """
    if not data:
        raise DamagedError("it is empty")
    seals = list(_SEAL.finditer(data))
    if not data.count(_BEGIN) == data.count(_END) == len(seals):
        raise DamagedError("its seal is damaged")
    begin = 0
    for seal in seals:
        end = seal.end() + 1  # that of the line
        section = data[max(begin, data.find(_PEM_BEGIN, begin, end)) : end]
        sealed_kind(section)
        begin = end
    return seals[-1][1].decode() if seals else None


def check(data: bytes, kind: Kind) -> bool:
    """Check that a file is whole and of a kind; return whether it has a seal, so that this is known.

    Raises:
        DamagedError: it is not whole.
        OtherKindError: it is of another kind.

    """
    found = sealed_kind(data)
    if found not in (None, kind):
        raise OtherKindError(f"it is a file of kind {found!r}, and {kind.value!r} was expected")
    return found is not None


def parse_json(data: bytes, kind: Kind) -> dict[str, Any]:
    """Return the content of a JSON object, without its seal.

    Raises:
        DamagedError, OtherKindError: as `check`; or it is no JSON object.

    """
    check(data, kind)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"it is no JSON ({error})") from None
    if not isinstance(content, dict):
        raise DamagedError("it is no JSON object")
    content.pop(KEY, None)
    return content


def tensors_metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of safetensors, the seal among them.

    Raises:
        DamagedError: their header cannot be read.

    """
    try:
        return dict(json.loads(_header(data) or b"").get("__metadata__") or {})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"its header cannot be read ({error})") from None


def _region(data: bytes) -> bytes:
    """Return the part of a file in which a seal can be."""
    header = _header(data)
    return data[-_TAIL:] if header is None else header


def _header(data: bytes) -> bytes | None:
    """Return the header of safetensors; None of anything else."""
    if data[8:9] != b"{":
        return None
    (length,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + length] if length <= min(_MAX_HEADER, len(data) - 8) else None


def _place(data: bytes) -> tuple[int, int]:
    """Return where the digest of a file's seal begins and ends."""
    header = _header(data)
    offset = max(0, len(data) - _TAIL) if header is None else 8
    found = _SEAL.search(_region(data))
    if found is None:
        raise DamagedError("its seal is damaged")
    return offset + found.start(2), offset + found.end(2)


# ---------------------------------------------------------------------- reading


def read_checked(path: Path, kind: Kind, parse: Callable[[bytes], T], *, is_told: bool = True) -> T:
    """Return what a file holds.

    Args:
        path: of the file.
        kind: what it is to be.
        parse: makes something of its bytes; raises ValueError if it cannot.
        is_told: whether a file without a digest is named in the log.

    Raises:
        DamagedError: it is damaged, or its disk cannot read it.
        OtherKindError: it is something else.
        OSError: it is missing, or may not be read.

    """
    try:
        data = path.read_bytes()
    except OSError as error:
        if error.errno == errno.EIO:
            raise DamagedError(f"the disk cannot read it ({error.strerror})") from None
        raise
    is_sealed = check(data, kind)
    try:
        found = parse(data)
    except (DamagedError, OtherKindError):
        raise
    except ValueError as error:
        raise DamagedError(str(error)) from None
    if not is_sealed and is_told:
        log.warning("%s carries no digest, as an earlier release wrote it: whether it is whole is not known", path)
    return found


def read_kept(path: Path, kind: Kind, parse: Callable[[bytes], T]) -> T | None:
    """Return what a file holds; if it is damaged, it is set aside, and the generation before it takes its place.

    The log names what is damaged, and what is used.

    Args:
        path: of the file, which `write_atomically` wrote with `keep_previous`.
        kind: what it is to be.
        parse: makes something of its bytes; raises ValueError if it cannot.

    Returns:
        None if there is no file, or no good one any more.

    Raises:
        OtherKindError: it is something else.
        OSError: it may not be read.

    """
    try:
        return read_checked(path, kind, parse)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        tell_aside(path, error)
    previous = previous_of(path)
    try:
        found = read_checked(previous, kind, parse)
    except FileNotFoundError:
        log.error("there is no earlier generation of %s: it counts as missing", path)
        return None
    except DamagedError as error:
        tell_aside(previous, error)
        return None
    except OtherKindError as error:
        log.error("%s cannot be used: %s", previous, error)
        return None
    log.warning("%s is used in place of %s", previous, path)
    try:
        previous.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        log.warning("%s cannot be renamed: %s", previous, error.strerror or error)
    return found


def tell_aside(path: Path, why: Exception) -> None:
    """Set a damaged file aside, and say so in the log."""
    try:
        aside = set_aside(path)
    except OSError as error:
        log.error("%s is damaged: %s; it cannot be set aside: %s", path, why, error.strerror or error)
    else:
        log.error("%s is damaged: %s; it is set aside as %s", path, why, aside)
