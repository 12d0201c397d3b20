"""The model store of a device: versions of one model on disk, of which one serves.

    STORE/versions/7/model.pt        the artefact
    STORE/versions/7/manifest.json   its SHA-256, and what is known of it
    STORE/serving.json               which version serves

A version is complete before it gets its name, and the file that names the serving one is replaced by a rename; so a
crash at any time leaves a store that opens, with the last good version serving. What is damaged is set aside.
"""

import errno
import fcntl
import hashlib
import logging
import re
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TextIO

from edgenewton.common.failpoints import failpoint
from edgenewton.common.files import sync_folder, write_atomically
from edgenewton.common.sealed_file import (
    DamagedError,
    Kind,
    OtherKindError,
    parse_json,
    read_checked,
    seal_json,
    tell_aside,
)

from edge_client.inference.artefact import Artefact
from edge_client.inference.errors import ArtefactError

log = logging.getLogger(__name__)

_PARTIAL, _DAMAGED = ".partial", ".damaged"


class StoreError(RuntimeError):
    """The model store cannot be used; the text names its folder and says why."""


@dataclass(frozen=True)
class Version:
    """What is known of a version without loading it."""

    version: int
    sha256: str
    """Of the artefact's file."""
    task: str
    step: int
    digest: str
    """Of the artefact."""
    accuracy: float | None
    """On the device's held-out samples when it was promoted, if it was tried."""
    promoted_at: str
    """ISO 8601, UTC."""


class ModelStore:
    """Versions of one model; one process at a time may have the store open.

    Args:
        folder: where it is; made if it is missing.
        keep: how many versions are kept, the serving one among them.

    Raises:
        StoreError: another process has it open, or the folder cannot be used.

    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder = folder
        self._keep = keep
        self._versions = folder / "versions"
        try:
            self._versions.mkdir(parents=True, exist_ok=True)
            self._lock = _open_lock(folder / ".lock")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise StoreError(f"the model store {folder} is in use by another process") from None
        except OSError as error:
            raise StoreError(f"the model store {folder} cannot be used: {error.strerror or error}") from None
        for path in self._versions.glob(f"*{_PARTIAL}"):
            shutil.rmtree(path, ignore_errors=True)
        self._rejected: set[int] = set()
        """Versions that cannot be used, and that a disk which cannot be written keeps in their places."""
        self.serving: Version | None = None
        """The version that serves; None in an empty store."""
        self._choose_serving()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes open it."""
        self._lock.close()

    def versions(self) -> list[int]:
        """Return the numbers of the versions that are there, ascending."""
        return sorted(int(path.name) for path in self._versions.iterdir() if path.name.isdigit())

    def load(self) -> Artefact:
        """Return the serving version's artefact.

        Raises:
            StoreError: the store is empty.

        """
        while self.serving is not None:
            try:
                return Artefact.load(self._model_path(self.serving.version))
            except ArtefactError as error:
                self.reject(str(error))
        raise StoreError(f"the model store {self.folder} holds no model that can be used")

    @property
    def serving_path(self) -> Path | None:
        """File of the serving version's artefact; None in an empty store."""
        return self._model_path(self.serving.version) if self.serving is not None else None

    def promote(self, artefact: Artefact, accuracy: float | None = None) -> Version:
        """Add a version, and make it the serving one.

        Raises:
            StoreError: it is of another task than the serving one, or cannot be written.

        """
        if self.serving is not None and artefact.task != self.serving.task:
            raise StoreError(
                f"the model store {self.folder} serves task {self.serving.task!r}; a model of task {artefact.task!r} "
                "does not belong there: use another store"
            )
        try:
            version = self._write(artefact, accuracy)
            self._set_serving(version)
        except OSError as error:
            raise StoreError(f"the model store {self.folder} cannot be written: {error.strerror or error}") from None
        failpoint("serving-replaced", version.version)
        self._remove_old()
        failpoint("old-versions-removed", version.version)
        return version

    def reject(self, reason: str) -> None:
        """Set the serving version aside, because it cannot be used, and go back to the newest good one."""
        if self.serving is not None:
            self._set_aside(self.serving.version, reason)
            self._choose_serving()

    # ------------------------------------------------------------------ on disk

    def _model_path(self, version: int) -> Path:
        return self._versions / str(version) / "model.pt"

    def _write(self, artefact: Artefact, accuracy: float | None) -> Version:
        number = 1 + max((int(found[0]) for path in self._versions.iterdir() if (found := _number(path))), default=0)
        partial = self._versions / f"{number}{_PARTIAL}"
        try:
            return self._write_partial(partial, number, artefact, accuracy)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk has no room for half a version
            raise

    def _write_partial(self, partial: Path, number: int, artefact: Artefact, accuracy: float | None) -> Version:
        artefact.save(partial / "model.pt")
        failpoint("model-written", number)
        version = Version(
            version=number,
            sha256=_sha256(partial / "model.pt"),
            task=artefact.task,
            step=artefact.step,
            digest=artefact.digest,
            accuracy=accuracy,
            promoted_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_atomically(partial / "manifest.json", seal_json(asdict(version), Kind.MODEL_MANIFEST, indent=2))
        failpoint("manifest-written", number)
        partial.rename(self._versions / str(number))
        sync_folder(self._versions)
        failpoint("version-named", number)
        return version

    def _set_serving(self, version: Version) -> None:
        content = seal_json({"version": version.version}, Kind.SERVING_VERSION)
        write_atomically(self.folder / "serving.json", content)
        self.serving = version

    def _choose_serving(self) -> None:
        """Serve the version that is named; if it is missing or damaged, the newest good one."""
        named = self._named_version()
        others = [number for number in reversed(self.versions()) if number != named]
        self.serving = None
        for number in ([named] if named is not None else []) + others:
            if number in self._rejected:
                continue
            try:
                version = self._check(number)
            except ArtefactError as error:
                self._set_aside(number, str(error))
                continue
            if number != named:
                log.warning("model store %s: version %d serves instead of %s", self.folder, number, named)
                try:
                    self._set_serving(version)
                except OSError as error:
                    log.error("%s cannot be written: %s", error.filename, error.strerror or error)
            self.serving = version
            return

    def _named_version(self) -> int | None:
        path = self.folder / "serving.json"
        try:
            return read_checked(path, Kind.SERVING_VERSION, _parse_serving)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            tell_aside(path, error)
        except (OSError, OtherKindError) as error:
            log.warning("%s cannot be used: %s", path, error)
        return None

    def _check(self, number: int) -> Version:
        """Return what a version's manifest says, after comparing it with the file.

        Raises:
            ArtefactError: the version is damaged.

        """
        path = self._model_path(number)
        try:
            version = read_checked(path.parent / "manifest.json", Kind.MODEL_MANIFEST, _parse_manifest)
            is_whole = version.version == number and version.sha256 == _sha256(path)
        except (OSError, ValueError) as error:
            raise ArtefactError(f"{path.parent} is damaged: {error}") from None
        if not is_whole:
            raise ArtefactError(f"{path} is damaged: its SHA-256 is not that of its manifest")
        return version

    def _set_aside(self, number: int, reason: str) -> None:
        folder = self._versions / str(number)
        if folder.exists():
            log.error("model store %s: version %d is set aside: %s", self.folder, number, reason)
            shutil.rmtree(folder.with_name(folder.name + _DAMAGED), ignore_errors=True)
            try:
                folder.rename(folder.with_name(folder.name + _DAMAGED))
            except OSError as error:
                log.error("%s cannot be renamed: %s", folder, error.strerror or error)
                self._rejected.add(number)

    def _remove_old(self) -> None:
        for number in self.versions()[: -self._keep]:
            shutil.rmtree(self._versions / str(number), ignore_errors=True)


def _open_lock(path: Path) -> TextIO:
    try:
        return path.open("w")
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return path.open()  # recognition goes on where nothing can be written any more


def _parse_serving(data: bytes) -> int:
    try:
        return int(parse_json(data, Kind.SERVING_VERSION)["version"])
    except (KeyError, TypeError):
        raise ValueError("it names no version") from None


def _parse_manifest(data: bytes) -> Version:
    try:
        return Version(**parse_json(data, Kind.MODEL_MANIFEST))
    except TypeError as error:
        raise ValueError(f"it is no manifest: {error}") from None


def _number(path: Path) -> re.Match[str] | None:
    return re.match(r"\d+", path.name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
