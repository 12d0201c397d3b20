"""The model repository: a folder of models that clients may load by name, because the operator named the folder.

    REPOSITORY/leaves.pt             version 1 of "leaves"; .onnx too
    REPOSITORY/digits/7/model.pt     version 7 of "digits"; the newest one is loaded

A client's name is only ever compared with what is in the folder: no path is made of it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".pt", ".onnx", ".pte")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class RepositoryError(RuntimeError):
    """The model repository cannot be used; the text names its folder and says why."""


@dataclass(frozen=True)
class StoredModel:
    """The newest version of a model in a repository."""

    name: str
    version: int
    path: Path


class ModelRepository:
    """Finds models in a folder, which may change at any time.

    Raises:
        RepositoryError: it is no folder.

    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise RepositoryError(f"the model repository {folder} is no folder; make it, and put models into it")
        self.folder = folder

    def models(self) -> dict[str, StoredModel]:
        """Return the newest version of each model by its name, in the names' order.

        Raises:
            RepositoryError: the folder cannot be read.

        """
        try:
            return {stored.name: stored for stored in self._found()}
        except OSError as error:
            raise RepositoryError(
                f"the model repository {self.folder} cannot be read: {error.strerror or error}"
            ) from None

    def _found(self) -> Iterator[StoredModel]:
        for path in sorted(self.folder.iterdir()):
            if path.is_dir():
                if _NAME.fullmatch(path.name) and (newest := _newest(path)) is not None:
                    yield newest
            elif path.suffix in SUFFIXES and _NAME.fullmatch(path.stem):
                yield StoredModel(path.stem, 1, path)


def _newest(folder: Path) -> StoredModel | None:
    versions = [int(path.name) for path in folder.iterdir() if _VERSION.fullmatch(path.name)]
    for version in sorted(versions, reverse=True):
        for suffix in SUFFIXES:
            path = folder / str(version) / f"model{suffix}"
            if path.is_file():
                return StoredModel(folder.name, version, path)
    return None
