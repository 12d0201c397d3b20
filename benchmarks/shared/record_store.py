"""Records of what a benchmark has run, on disk, so that it goes on where it was interrupted."""

import json
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar


class Record(Protocol):
    """A dataclass of what JSON can hold."""

    @property
    def key(self) -> Hashable:
        """What identifies it; a later record takes the place of an earlier one with the same key."""


R = TypeVar("R", bound=Record)


class RecordStore(Generic[R]):
    """A file of records, one a line.

    Args:
        path: of the file; it and its folder are made when they are needed.
        record: the dataclass.

    """

    def __init__(self, path: Path, record: type[R]) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known: dict[Hashable, R] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                kept = record(**json.loads(line))
            except (ValueError, TypeError):
                continue  # the line that was being written when the benchmark was killed
            self._known[kept.key] = kept

    def all(self) -> list[R]:
        """Return what is kept."""
        return list(self._known.values())

    def get(self, key: Hashable) -> R | None:
        """Return a record, if it is kept."""
        return self._known.get(key)

    def add(self, record: R) -> None:
        """Keep a record."""
        fields: dict[str, Any] = asdict(record)  # type: ignore[call-overload]
        with self._path.open("a") as file:
            file.write(json.dumps(fields) + "\n")
        self._known[record.key] = record


def options_text(options: Mapping[str, float]) -> str:
    """Return options in one line, the same for the same options."""
    return ", ".join(f"{name} {value:g}" for name, value in options.items()) or "-"
