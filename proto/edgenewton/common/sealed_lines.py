"""A log of JSON lines of which each carries a digest of itself and of the line before, in files of bounded size.

    {"event": "joined", ..., "seal": "64 hexadecimal digits"}

The digest is the SHA-256 of the digest of the line before (nothing in the first line of a file, and behind a line that
is not whole), a line feed, and the line without its seal. So a flipped bit and a line that is missing are noticed.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgenewton.common.files import make_folder, sync_folder

_SEAL = re.compile(rb', "seal": "([0-9a-f]{64})"\}$')
_DIGEST = re.compile(rb'[0-9a-f]{64}"\}$')
_LONGEST_LINE = 1 << 16
"""Bytes at the end of a file in which its last line is looked for."""


@dataclass(frozen=True)
class LinesReport:
    """What was found in a file of sealed lines."""

    lines: int
    damaged: list[int] = field(default_factory=list)
    """Numbers of the lines, from 1, that are not whole or do not follow the line before."""
    unsealed: int = 0
    """Lines without a digest, as earlier releases wrote them."""


def seal_line(content: Mapping[str, Any], before: str) -> tuple[bytes, str]:
    """Return a sealed line with its end, and its digest; `before` is the digest of the line before."""
    body = json.dumps(content)
    digest = hashlib.sha256(f"{before}\n{body}".encode()).hexdigest()
    return f'{body[:-1]}, "seal": "{digest}"}}\n'.encode(), digest


def _seal_lines(contents: Iterable[Mapping[str, Any]], before: str) -> tuple[bytes, str]:
    lines = b""
    for content in contents:
        line, before = seal_line(content, before)
        lines += line
    return lines, before


def is_sealed_line(line: bytes) -> bool:
    """Whether a line, without its end, looks like a sealed one, whole or not."""
    return _SEAL.search(line) is not None


def check_lines(data: bytes) -> LinesReport:
    """Return which lines of a file are damaged."""
    *lines, last = data.split(b"\n")
    damaged = [len(lines) + 1] if last else []  # it has no end
    unsealed, before = 0, b""
    for number, line in enumerate(lines, 1):
        seal = _SEAL.search(line)
        if seal is None:
            # Earlier releases' lines come first, and look like no line whose seal has lost a bit.
            if unsealed < number - 1 or b'"seal"' in line or _DIGEST.search(line) or not _is_object(line):
                damaged.append(number)
            else:
                unsealed += 1
            before = b""
            continue
        if hashlib.sha256(before + b"\n" + line[: seal.start()] + b"}").hexdigest().encode() != seal[1]:
            damaged.append(number)
        before = seal[1]
    return LinesReport(len(lines) + bool(last), sorted(damaged), unsealed)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


class LineFile:
    """Appends sealed lines to a file for its owner alone; one that is full gets a number, and a new one begins.

    Args:
        path: of the file.
        max_bytes: of a file.
        kept: how many older files are kept, as PATH.1 (the newest of them) and on.

    Raises:
        OSError: it cannot be written.

    """

    def __init__(self, path: Path, max_bytes: int, kept: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._descriptor: int | None = None
        self._size = 0
        self._before = ""
        """Digest of the last line; empty for none."""
        self._is_torn = False
        """Whether the last line has no end."""
        make_folder(path.parent)
        self._open()

    def write(self, *contents: Mapping[str, Any]) -> None:
        """Append a line of each, all of them or nothing.

        Raises:
            OSError: it cannot be written.

        """
        lines, digest = _seal_lines(contents, self._before)
        if self._descriptor is not None and self._size and self._size + len(lines) > self._max_bytes:
            self._roll_over()
        if self._descriptor is None:
            self._open()
            lines, digest = _seal_lines(contents, self._before)
        assert self._descriptor is not None
        data = b"\n" + lines if self._is_torn else lines
        try:
            written = 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            self._take_back()
            raise
        self._before, self._is_torn, self._size = digest, False, self._size + len(data)

    def close(self) -> None:
        """Force the file to the disk, and close it."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._descriptor).st_size
        tail = os.pread(self._descriptor, _LONGEST_LINE, max(0, self._size - _LONGEST_LINE))
        self._is_torn = bool(tail) and not tail.endswith(b"\n")
        seal = None if self._is_torn else _SEAL.search(tail.rstrip(b"\n").rpartition(b"\n")[2])
        self._before = seal[1].decode() if seal is not None else ""

    def _take_back(self) -> None:
        """Cut off what was written."""
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            self._is_torn, self._before = True, ""
            self._size = os.fstat(self._descriptor).st_size

    def _roll_over(self) -> None:
        self.close()
        for number in range(self._kept, 0, -1):
            older = self.path if number == 1 else self._numbered(number - 1)
            with suppress(FileNotFoundError):
                older.replace(self._numbered(number))
        if not self._kept:
            self.path.unlink()
        sync_folder(self.path.parent)

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")
