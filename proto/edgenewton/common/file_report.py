"""Says what a file is, and whether it is whole: every file that this software writes, and no other."""

import json
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from edgenewton.common.sealed_file import (
    DamagedError,
    Kind,
    claimed_kind,
    sealed_kind,
    sealed_pem_kind,
    tensors_metadata,
)
from edgenewton.common.sealed_lines import check_lines, is_sealed_line
from edgenewton.common.sealed_rows import check_rows, is_damage, open_to_read

RECORD_APPLICATION = 0x45444E57
"""Tells the SQLite files that are records ("EDNW"; PRAGMA application_id)."""

_NAMES: dict[str, str] = {
    Kind.DEVICE_STATE: "a device's state",
    Kind.MODEL: "a model",
    Kind.EXECUTORCH_MODEL: "a model for ExecuTorch",
    Kind.MODEL_MANIFEST: "the manifest of a version in a model store",
    Kind.SERVING_VERSION: "a model store's note of the version that serves",
    Kind.ROUND_WEIGHTS: "the weights of a round of a Flower run",
    Kind.RUN_HISTORY: "the history of a Flower run",
    Kind.TASK_DATA: "data of a task, kept on this machine",
    Kind.LEDGER: "an authority's ledger",
    Kind.CERTIFICATE: "a certificate",
    Kind.PRIVATE_KEY: "a private key",
    Kind.REVOCATION_LIST: "a revocation list",
}
_SQLITE = b"SQLite format 3\0"


class Verdict(StrEnum):
    """Whether a file is whole."""

    WHOLE = "whole"
    DAMAGED = "damaged"
    NO_DIGEST = "no digest"
    """An earlier release wrote it, or another program: nobody can tell."""
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class FileReport:
    """What a file is."""

    path: Path
    verdict: Verdict
    what: str
    """In words; empty where it is not known."""
    detail: str = ""
    """What is wrong with it; empty if nothing is."""

    def __str__(self) -> str:
        """Return it as a sentence."""
        words = {
            Verdict.WHOLE: f"{self.what}, whole",
            Verdict.DAMAGED: f"{self.what or 'it'} is damaged",
            Verdict.NO_DIGEST: f"{self.what or 'it is'} without a digest: whether it is whole is not known",
            Verdict.UNREADABLE: "it cannot be read",
        }
        return f"{self.path}: {words[self.verdict]}" + (f": {self.detail}" if self.detail else "")


Other = Callable[[Path, bytes], FileReport | None]


def report_on(path: Path, others: Other | None = None) -> FileReport:
    """Return what a file is, and whether it is whole; it is only read.

    Args:
        path: of the file.
        others: asked about a file without a seal that none of the formats here is.

    """
    if path.is_dir():
        return FileReport(path, Verdict.UNREADABLE, "", "it is a folder; name a file in it")
    try:
        data = path.read_bytes()
    except OSError as error:
        return FileReport(path, Verdict.UNREADABLE, "", error.strerror or str(error))
    if len(data) >= len(_SQLITE) and sum(a != b for a, b in zip(data, _SQLITE, strict=False)) <= 2:  # it may be damaged
        return _report_on_database(path)
    try:
        kind = sealed_pem_kind(data) if b"-----BEGIN " in data[:4_096] else sealed_kind(data)
    except DamagedError as error:
        return FileReport(path, Verdict.DAMAGED, _NAMES.get(claimed_kind(data) or "", ""), str(error))
    if kind is not None:
        return FileReport(path, Verdict.WHOLE, _NAMES.get(kind, f"a file of kind {kind!r}, of a newer release"))
    if data.startswith(b'{"time"') or is_sealed_line(data.partition(b"\n")[0]):
        return _report_on_lines(path, data)
    found = others(path, data) if others is not None else None
    if found is None and (fault := _fault(path, data)):
        return FileReport(path, Verdict.DAMAGED, "", fault)
    return found or FileReport(path, Verdict.NO_DIGEST, "", "an earlier release wrote it, or another program")


def _fault(path: Path, data: bytes) -> str:
    """Return how a file shows that it was cut off; empty if it does not."""
    if path.suffix == ".safetensors":
        try:
            tensors_metadata(data)
        except DamagedError as error:
            return str(error)
    if data.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "it is a zip archive without an end"
    if data.startswith(b"{"):
        try:
            json.loads(data)
        except (ValueError, RecursionError) as error:
            return f"it is no JSON ({error})"
    return ""


def _report_on_lines(path: Path, data: bytes) -> FileReport:
    what, found = "an audit log", check_lines(data)
    if found.damaged:
        lines = ", ".join(map(str, found.damaged[:10])) + (", …" if len(found.damaged) > 10 else "")
        return FileReport(path, Verdict.DAMAGED, what, f"lines {lines} of {found.lines}")
    if found.unsealed:
        return FileReport(path, Verdict.NO_DIGEST, what, f"{found.unsealed} of {found.lines} lines")
    return FileReport(path, Verdict.WHOLE, what)


def _report_on_database(path: Path) -> FileReport:
    what = "an SQLite database"
    try:
        # A coordinator may be writing it.
        with closing(open_to_read(path)) as database:
            (application,) = database.execute("PRAGMA application_id").fetchone()
            if application == RECORD_APPLICATION:
                what = "a coordinator's record"
            if check_rows(database):
                return FileReport(path, Verdict.WHOLE, what)
            if application == RECORD_APPLICATION:
                return FileReport(path, Verdict.DAMAGED, what, "it has lost its digests")
    except DamagedError as error:
        return FileReport(path, Verdict.DAMAGED, what, str(error))
    except sqlite3.Error as error:
        return FileReport(path, Verdict.DAMAGED if is_damage(error) else Verdict.UNREADABLE, what, str(error))
    return FileReport(path, Verdict.NO_DIGEST, what)
