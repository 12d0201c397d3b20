"""A Flower run's `history.json`: what its rounds gave, beside the run's config."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgenewton.common.files import write_atomically

from coordinator.telemetry.run_files import HISTORY_NAME


def save_history(rounds: list[dict[str, Any]], config: Mapping[str, object], folder: Path) -> Path:
    """Write the rounds' metrics and the run's config, and return the file."""
    text = json.dumps({"config": dict(config), "rounds": rounds}, indent=2) + "\n"
    path = folder / HISTORY_NAME
    write_atomically(path, text.encode())
    return path


def first_rounds(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return what is known of the first rounds of the run in a folder; nothing if its history cannot be read."""
    try:
        entries = json.loads((folder / HISTORY_NAME).read_text())["rounds"]
        return [entry for entry in entries if entry["round"] <= count]
    except (OSError, ValueError, KeyError, TypeError):
        return []
