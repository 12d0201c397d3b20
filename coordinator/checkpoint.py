"""Checkpoints of a Flower run: weights as safetensors, with the task's name and the step in the metadata."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from safetensors.numpy import save as dump_arrays


def save_checkpoint(arrays: ArrayRecord, folder: Path, server_round: int, step: int, task: str) -> Path:
    """Write `round-N.safetensors` and return its path."""
    metadata = {"task": task, "step": str(step), "round": str(server_round)}
    data = dump_arrays({name: array.numpy() for name, array in arrays.items()}, metadata)
    return _write_atomically(folder / f"round-{server_round}.safetensors", data)


def save_history(history: list[dict[str, Any]], config: Mapping[str, object], folder: Path) -> Path:
    """Write `history.json`, the rounds' metrics beside the run's config, and return its path."""
    text = json.dumps({"config": dict(config), "rounds": history}, indent=2) + "\n"
    return _write_atomically(folder / "history.json", text.encode())


def _write_atomically(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path
