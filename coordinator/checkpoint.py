"""Checkpoints of a Flower run: weights as safetensors, with the task's name and the step in the metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgenewton.files import write_atomically
from flwr.app import ArrayRecord
from safetensors.numpy import save as dump_arrays


def save_checkpoint(arrays: ArrayRecord, folder: Path, server_round: int, step: int, task: str) -> Path:
    """Write `round-N.safetensors` and return its path."""
    metadata = {"task": task, "step": str(step), "round": str(server_round)}
    data = dump_arrays({name: array.numpy() for name, array in arrays.items()}, metadata)
    path = folder / f"round-{server_round}.safetensors"
    write_atomically(path, data)
    return path


def save_history(history: list[dict[str, Any]], config: Mapping[str, object], folder: Path) -> Path:
    """Write `history.json`, the rounds' metrics beside the run's config, and return its path."""
    text = json.dumps({"config": dict(config), "rounds": history}, indent=2) + "\n"
    path = folder / "history.json"
    write_atomically(path, text.encode())
    return path
