"""Packages that hold data: which registry they are in, and which of their files are wanted."""

import re
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar

from edge_client.tasks.packages.archive import MAX_BYTES, SUFFIXES, read_members
from edge_client.tasks.packages.download import download_debian, download_wheel
from edge_client.tasks.packages.errors import FetchError

MAX_FILES = 20_000
"""A folder with more is no unpacked package."""


@dataclass(frozen=True)
class Package(ABC):
    """A package, and patterns of the paths that are wanted of it, such as "usr/share/datasets/*.gz"."""

    name: str
    files: tuple[str, ...]
    suffix: ClassVar[str]
    registry: ClassVar[str]

    @abstractmethod
    def download(self, folder: Path, deadline_s: float) -> Path:
        """Download the package's file into an empty folder; return its path.

        Raises:
            FetchError: it cannot be had.

        """

    def fetch(self, deadline_s: float) -> dict[str, bytes]:
        """Download the package, and return its wanted files by their paths in it.

        Raises:
            FetchError: it cannot be had, or lacks a file.

        """
        with tempfile.TemporaryDirectory(prefix="edge-client-fetch-") as folder:
            return read_members(self.download(Path(folder), deadline_s), self.files)

    def find(self, place: Path) -> dict[str, bytes]:
        """Return the wanted files from a package's file, a folder that holds it, or a folder where it is unpacked.

        Raises:
            FetchError: they are not there.

        """
        if place.is_file():
            if place.suffix not in SUFFIXES:
                raise FetchError(f"{place} is no package; a file {self.suffix} or a folder was expected")
            return read_members(place, self.files)
        if not place.is_dir():
            raise FetchError(f"{place} does not exist")
        archives = sorted(file for file in place.iterdir() if self._is_named(file.name))
        if archives:
            return read_members(archives[-1], self.files)
        return self._find_unpacked(place)

    def _is_named(self, file: str) -> bool:
        """Whether a file is called as this package's are: `NAME_VERSION_all.deb`, `NAME-VERSION-py3-none-any.whl`."""
        stem = re.split(r"_(?=\d)" if self.suffix == ".deb" else r"-(?=\d)", file, maxsplit=1)[0]
        return file.endswith(self.suffix) and stem.replace("_", "-").lower() == self.name.lower()

    def _find_unpacked(self, folder: Path) -> dict[str, bytes]:
        """Look for files that end as the wanted ones do: a folder may be any below which the package was unpacked."""
        found: dict[str, bytes] = {}
        total = 0
        for pattern in self.files:
            tail = pattern.rsplit("/", 2)[-2:]
            for number, path in enumerate(sorted(folder.rglob("*"))):
                if number > MAX_FILES:
                    raise FetchError(
                        f"{folder} has more than {MAX_FILES:,} files; name the folder with the data itself"
                    )
                name = path.resolve().as_posix()
                if path.is_file() and fnmatchcase(name, "*/" + "/".join(tail)):
                    total += path.stat().st_size
                    if total > MAX_BYTES:
                        raise FetchError(f"{folder}: what is to be taken has more than {MAX_BYTES:,} bytes")
                    found[name.lstrip("/")] = path.read_bytes()
            if not any(fnmatchcase(name, "*/" + "/".join(tail)) for name in found):
                raise FetchError(
                    f"{folder} has neither {self.name}*{self.suffix} nor files {'/'.join(tail)}; "
                    f"they are in the {self.registry} package {self.name}"
                )
        return found


@dataclass(frozen=True)
class DebianPackage(Package):
    """A package of Debian, or of what is made from it."""

    suffix = ".deb"
    registry = "Debian"

    def download(self, folder: Path, deadline_s: float) -> Path:
        """Download the package's file with apt-get."""
        return download_debian(self.name, folder, deadline_s)


@dataclass(frozen=True)
class PythonPackage(Package):
    """A wheel; one of `others` that holds the same files takes its place where it cannot be had."""

    others: tuple[str, ...] = ()
    suffix = ".whl"
    registry = "Python"

    def download(self, folder: Path, deadline_s: float) -> Path:
        """Download the wheel with pip."""
        errors = []
        for name in (self.name, *self.others):
            try:
                return download_wheel(name, folder, deadline_s)
            except FetchError as error:
                errors.append(str(error))
        raise FetchError("; ".join(errors))
