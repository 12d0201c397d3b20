"""Data of packages as tensors in the cache: fetched once, read by every run after it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from edge_client.tasks.cache import cache_path, keep, kept
from edge_client.tasks.packages.errors import FetchError
from edge_client.tasks.packages.source import Package
from edge_client.tasks.task import SampleError

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class PackagedData:
    """Data that ship in packages.

    Args:
        name: of the file in the cache, with a version that changes whenever `read` would return something else.
        about: what they are, in a few words.
        licence: of the data.
        packages: all that are needed.
        download_mb: size of these together.
        kept_mb: size of what is kept.
        read: makes tensors of the packages' files, given by their paths.

    """

    name: str
    about: str
    licence: str
    packages: tuple[Package, ...]
    download_mb: float
    kept_mb: float
    read: Callable[[Mapping[str, bytes]], Tensors]

    @property
    def path(self) -> Path:
        """Where they are kept; they may not be there yet."""
        return cache_path(self.name)

    def load(self) -> Tensors | None:
        """Return the data, or None if they were not fetched or are damaged. They are shared: do not write to them."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return _load(self.name, str(self.path), status.st_mtime_ns, status.st_size)

    def fetch(self, place: Path | None = None, deadline_s: float = 600.0) -> Tensors:
        """Fetch the data, keep and return them.

        Args:
            place: a package's file, or a folder with the packages or with what is in them; None to download them.
            deadline_s: of each download.

        Raises:
            FetchError: they cannot be had, read or kept; the text says why and what to do.

        """
        files: dict[str, bytes] = {}
        for package in self.packages:
            files |= package.fetch(deadline_s) if place is None else package.find(place)
        try:
            made = self.read(files)
        except (SampleError, OSError, EOFError, ValueError, KeyError) as error:
            raise FetchError(f"{self.about}: the files are not what was expected: {error}") from error
        try:
            keep(self.name, made)
        except OSError as error:
            raise FetchError(f"{self.path} cannot be written: {error.strerror or error}") from None
        return made


@lru_cache(maxsize=8)
def _load(name: str, path: str, mtime_ns: int, size: int) -> Tensors | None:  # noqa: ARG001  # what tells files apart
    return kept(name)
