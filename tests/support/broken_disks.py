"""Disks that fail, and damage to files, for tests that any user can run."""

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def full_disk(size: int = 0) -> Iterator[None]:
    """Let the kernel refuse to write a file beyond a size in bytes: a real failure in the midst of each write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def read_only(patch, folder: Path) -> None:
    """Let the lowest calls refuse what a read-only file system refuses below a folder; root may write anywhere else."""
    for name in ("open", "mkdir", "rename", "replace", "unlink", "link"):
        patch.setattr(os, name, _refusing(getattr(os, name), folder, is_open=name == "open"))


def _refusing(call, folder: Path, *, is_open: bool):
    def refuse(path, *arguments, **named):
        writes = not is_open or (arguments and arguments[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and isinstance(path, str | os.PathLike) and str(folder) in os.fspath(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))
        return call(path, *arguments, **named)

    return refuse


def flipped(data: bytes, bit: int) -> bytes:
    """Return data with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def bits(data: bytes, count: int, ends: int = 0) -> list[int]:
    """Return so many different bits of data, at random; and all of its first and last `ends` bytes."""
    drawn = np.random.default_rng(0).choice(8 * len(data), min(count, 8 * len(data)), replace=False)
    at_ends = {*range(8 * min(ends, len(data))), *range(8 * max(0, len(data) - ends), 8 * len(data))}
    return sorted({*map(int, drawn), *at_ends})


def damages(data: bytes) -> dict[str, bytes]:
    """Return what a broken disk may leave of a file."""
    garbage = np.random.default_rng(1).bytes(len(data))
    return {
        "empty": b"",
        "one byte": data[:1],
        "half": data[: len(data) // 2],
        "one byte lost": data[:-1],
        "zeros": bytes(len(data)),
        "zeros at the end": data[: -len(data) // 4] + bytes(len(data) - len(data[: -len(data) // 4])),
        "garbage": garbage,
        "a block of garbage": data[: len(data) // 2] + garbage[:16] + data[len(data) // 2 + 16 :],
        "one byte more": data + b"\0",
    }
