"""Reads chosen files out of a package, in memory: of Debian (.deb) and of Python (.whl). Nothing of it is run."""

import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from edge_client.tasks.packages.errors import FetchError

SUFFIXES = (".deb", ".whl")
MAX_BYTES = 1 << 30
"""What the chosen files of a package may have together, unpacked."""
_UNPACK_S = 300
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60


def read_members(archive: Path, patterns: Sequence[str]) -> dict[str, bytes]:
    """Return the files of a package that match a pattern, by their paths in it, such as "usr/share/x/y.gz".

    Args:
        archive: a .deb or .whl file.
        patterns: of paths, as `fnmatch` has them.

    Raises:
        FetchError: it cannot be read, has no such file, or they are too large.

    """
    try:
        members = dict(_debian(archive, patterns) if archive.suffix == ".deb" else _wheel(archive, patterns))
    except OSError as error:
        raise FetchError(f"{archive} cannot be read: {error.strerror or error}") from None
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, ValueError) as error:
        if isinstance(error, FetchError):
            raise
        raise FetchError(f"{archive} is damaged, or no package ({error}); download it again") from None
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in members):
            raise FetchError(f"{archive.name} holds no file {pattern}: it is another package, or another release of it")
    return members


def _wheel(archive: Path, patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    budget = MAX_BYTES
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if not info.is_dir() and _matches(info.filename, patterns):
                budget = _spend(budget, info.file_size, archive)
                yield info.filename, file.read(info)


def _debian(archive: Path, patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    budget = MAX_BYTES
    with _data_tar(archive) as data, tarfile.open(fileobj=data, mode="r|*") as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if member.isfile() and _matches(name, patterns):
                budget = _spend(budget, member.size, archive)
                content = tar.extractfile(member)
                if content is not None:
                    yield name, content.read()


@contextmanager
def _data_tar(archive: Path) -> Iterator[BinaryIO]:
    """Give the archive of files in a Debian package (deb(5): an ar archive that holds data.tar, compressed)."""
    with archive.open("rb") as file:
        if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
            raise FetchError(f"{archive} is no Debian package, or is damaged; download it again")
        while len(header := file.read(_AR_HEADER)) == _AR_HEADER:
            name, size = header[:16].decode("ascii").rstrip(" /"), int(header[48:58])
            if name.startswith("data.tar"):
                break
            file.seek(size + size % 2, 1)
        else:
            raise FetchError(f"{archive} is damaged: it holds no data.tar; download it again")
        content = file.read(size)
    if len(content) < size:
        raise FetchError(f"{archive} is cut off; download it again")
    yield io.BytesIO(content if not name.endswith(".zst") else _unpacked(archive))


def _unpacked(archive: Path) -> bytes:
    """Return data.tar where Python cannot uncompress it (Zstandard, which Ubuntu uses)."""
    tool = shutil.which("dpkg-deb")
    if tool is None:
        raise FetchError(f"{archive} is compressed with Zstandard, which needs dpkg-deb; unpack it elsewhere")
    try:
        made = subprocess.run([tool, "--fsys-tarfile", archive], capture_output=True, timeout=_UNPACK_S, check=False)
    except subprocess.TimeoutExpired:
        raise FetchError(f"dpkg-deb did not unpack {archive} in {_UNPACK_S} s") from None
    if made.returncode:
        raise FetchError(f"dpkg-deb cannot unpack {archive}: {made.stderr.decode(errors='replace').strip()}")
    return made.stdout


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _spend(budget: int, size: int, archive: Path) -> int:
    if size > budget:
        raise FetchError(f"{archive}: what is to be taken from it has more than {MAX_BYTES:,} bytes; it was refused")
    return budget - size
