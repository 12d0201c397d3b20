"""The artefact of a model: one file with everything that recognition needs, and nothing that can run code."""

import hashlib
import json
import os
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from edge_client.tasks import Task, load_task

FORMAT = "edgenewton-model"
FORMAT_VERSION = 1
_KEYS = {"format", "format_version", "task", "labels", "input_shape", "step", "weights", "digest"}


class ArtefactError(ValueError):
    """A model file cannot be used; the text names the file and says why."""


@dataclass(frozen=True)
class Artefact:
    """A trained model: its task, what it recognises, and its weights after `step` steps."""

    task: str
    labels: tuple[str, ...]
    input_shape: tuple[int, ...]
    step: int
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, task: Task, task_path: str, model: nn.Module, step: int) -> Self:
        """Return the artefact of a model that was trained on a task, which `load_task(task_path)` gives."""
        weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        return cls(task_path, tuple(task.labels), tuple(task.input_shape), step, weights)

    @classmethod
    def from_checkpoint(cls, path: Path) -> Self:
        """Return the artefact of a ServerApp's checkpoint (safetensors, with the task's name and the step).

        Raises:
            ArtefactError: the file is missing or not such a checkpoint.
            TaskError: its task cannot be loaded.

        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ArtefactError(f"{path} is not a checkpoint that can be read: {error}") from None
        if "task" not in metadata or "step" not in metadata:
            raise ArtefactError(f"{path} is no checkpoint of EdgeNewton: its metadata name no task or step")
        task = load_task(metadata["task"])
        return cls(metadata["task"], tuple(task.labels), tuple(task.input_shape), int(metadata["step"]), weights)

    @property
    def digest(self) -> str:
        """SHA-256 of everything in the artefact, in hexadecimal."""
        description = [self.task, list(self.labels), list(self.input_shape), self.step]
        weights = {name: tensor.contiguous() for name, tensor in sorted(self.weights.items())}
        return hashlib.sha256(json.dumps(description).encode() + dump_tensors(weights)).hexdigest()

    def save(self, path: Path) -> None:
        """Write the file; a crash at any time leaves either the old file or the new one."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "task": self.task,
            "labels": list(self.labels),
            "input_shape": list(self.input_shape),
            "step": self.step,
            "weights": self.weights,
            "digest": self.digest,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).chmod(0o644)
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote; a file that would run code is refused.

        Raises:
            ArtefactError: the file is missing, no model, of a newer format, or damaged.

        """
        content = _read(path)
        version = content["format_version"]
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise ArtefactError(
                f"{path} has format version {version}; this release reads up to {FORMAT_VERSION}: install a newer one"
            )
        try:
            artefact = cls(
                task=content["task"],
                labels=tuple(content["labels"]),
                input_shape=tuple(content["input_shape"]),
                step=content["step"],
                weights=dict(content["weights"]),
            )
            is_whole = artefact.digest == content["digest"]
        except (TypeError, ValueError, AttributeError) as error:
            raise ArtefactError(f"{path} is damaged: {error}") from None
        if not is_whole:
            raise ArtefactError(f"{path} is damaged: its weights do not have the digest that was saved with them")
        return artefact


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size == 0:
            raise ArtefactError(f"{path} is empty; a model was expected")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ArtefactError(f"{path} does not exist; train a model first, for instance with `make demo`") from None
    except (PermissionError, IsADirectoryError) as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}") from None
    except pickle.UnpicklingError:
        raise ArtefactError(f"{path} is not a model, or wants to run code when it is loaded; it was refused") from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(f"{path} is not a model that can be read, or is damaged") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not content.keys() >= _KEYS:
        raise ArtefactError(f"{path} is not a model of EdgeNewton")
    return content
