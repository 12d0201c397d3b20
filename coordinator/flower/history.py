"""A Flower run's `history.json`: what its rounds gave, beside the run's config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgenewton.common.files import write_atomically
from edgenewton.common.sealed_file import Kind, parse_json, read_kept, seal_json

from coordinator.telemetry.run_files import HISTORY_NAME


def save_history(rounds: list[dict[str, Any]], config: Mapping[str, object], folder: Path) -> Path:
    """Write the rounds' metrics and the run's config, and return the file.

    Raises:
        OSError: it cannot be written; the file that was there stays.

    """
    path = folder / HISTORY_NAME
    data = seal_json({"config": dict(config), "rounds": rounds}, Kind.RUN_HISTORY, indent=2)
    write_atomically(path, data, keep_previous=True)
    return path


def first_rounds(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return what is known of the first rounds of the run in a folder; nothing if its history cannot be read."""
    try:
        rounds = read_kept(folder / HISTORY_NAME, Kind.RUN_HISTORY, _rounds)
    except (OSError, ValueError):
        return []
    return [entry for entry in rounds or [] if entry["round"] <= count]


def _rounds(data: bytes) -> list[dict[str, Any]]:
    """Return the rounds of a history, each with its number."""
    rounds = parse_json(data, Kind.RUN_HISTORY).get("rounds")
    if not isinstance(rounds, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("round"), int) for entry in rounds
    ):
        raise ValueError("it has no rounds")
    return rounds
