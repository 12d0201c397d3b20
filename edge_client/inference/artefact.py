"""The artefact of a model: one file with everything that recognition needs, and nothing that can run code."""

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch
from edgenewton.common.files import previous_of, write_atomically
from edgenewton.common.sealed_file import (
    DamagedError,
    Kind,
    OtherKindError,
    check,
    read_checked,
    seal_zip,
    tensors_metadata,
)
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from edge_client.inference.errors import ArtefactError
from edge_client.tasks import Task, load_foreign_task

__all__ = ["FORMAT", "FORMAT_VERSION", "Artefact", "ArtefactError"]

FORMAT = "edgenewton-model"
FORMAT_VERSION = 1
_KEYS = ("task", "labels", "input_shape", "step", "software_version", "weights", "digest")


def _software_version() -> str:
    try:
        return metadata.version("edgenewton")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


@dataclass(frozen=True)
class Artefact:
    """A trained model: its task, what it recognises, and its weights after `step` steps."""

    task: str
    """What `load_task` takes."""
    labels: tuple[str, ...]
    """What the outputs mean, in their order."""
    input_shape: tuple[int, ...]
    """Shape of one prepared sample."""
    step: int
    weights: dict[str, Tensor]
    """The model's `state_dict`."""
    software_version: str = field(default_factory=_software_version)
    """The release of EdgeNewton that made it."""

    @classmethod
    def of(cls, task: Task, task_path: str, model: nn.Module, step: int) -> Self:
        """Return the artefact of a model that was trained on a task, which `load_task(task_path)` gives."""
        weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        return cls(task_path, tuple(task.labels), tuple(task.input_shape), step, weights)

    @classmethod
    def from_checkpoint(cls, path: Path, allow: Collection[str] = ()) -> Self:
        """Return the artefact of a ServerApp's checkpoint (safetensors, with the task's name and the step).

        Args:
            path: the file.
            allow: import paths of tasks whose code may be run; see `edge_client.tasks.allowed`.

        Raises:
            ArtefactError: the file is missing or not such a checkpoint.
            TaskError: its task cannot be loaded, or is not allowed.

        """
        try:
            header, weights = read_checked(path, Kind.ROUND_WEIGHTS, _parse_tensors)
        except OSError as error:
            raise ArtefactError(f"{path} is not a checkpoint that can be read: {error.strerror or error}") from None
        except DamagedError as error:
            raise ArtefactError(
                f"{path} is not a checkpoint that can be read, or is damaged: {error}; take an earlier round's"
            ) from None
        except OtherKindError as error:
            raise ArtefactError(f"{path} is no checkpoint of EdgeNewton: {error}") from None
        if "task" not in header or "step" not in header:
            raise ArtefactError(f"{path} is no checkpoint of EdgeNewton: its metadata name no task or step")
        task = load_foreign_task(header["task"], allow)
        return cls(header["task"], tuple(task.labels), tuple(task.input_shape), int(header["step"]), weights)

    @property
    def digest(self) -> str:
        """SHA-256 of everything in the artefact, in hexadecimal.

        It covers the description, then of each tensor in the order of their names its name, dtype, shape and bytes.
        It depends on no library's file layout, so that another release of one cannot make a whole file look damaged.
        """
        description = [self.task, list(self.labels), list(self.input_shape), self.step, self.software_version]
        digest = hashlib.sha256(json.dumps(description).encode())
        for name, tensor in sorted(self.weights.items()):
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            # As bytes, because NumPy lacks some of torch's dtypes; flat, because a scalar has no view as bytes.
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the file, and keep the one before; a crash at any time leaves either the old file or the new one.

        Raises:
            OSError: it cannot be written; the old file stays.

        """
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "task": self.task,
            "labels": list(self.labels),
            "input_shape": list(self.input_shape),
            "step": self.step,
            "software_version": self.software_version,
            "weights": self.weights,
            "digest": self.digest,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomically(path, seal_zip(buffer.getvalue(), Kind.MODEL), keep_previous=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote; a file that would run code is refused.

        Raises:
            ArtefactError: the file is missing, no model, of a newer format, or damaged.

        """
        content = _read(path)
        _check_format(path, content)
        try:
            artefact = cls(
                task=content["task"],
                labels=tuple(content["labels"]),
                input_shape=tuple(content["input_shape"]),
                step=content["step"],
                weights=dict(content["weights"]),
                software_version=content["software_version"],
            )
            is_whole = artefact.digest == content["digest"]
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ArtefactError(f"{path} is damaged: {error}") from None
        if not is_whole:
            raise ArtefactError(f"{path} is damaged: its content does not have the digest that was saved with it")
        return artefact


def _parse_tensors(data: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        return tensors_metadata(data), load_tensors(data)
    except SafetensorError as error:
        raise DamagedError(str(error)) from None


def _read(path: Path) -> Any:
    """Return what is in a file, without running any of it."""
    try:
        if path.stat().st_size == 0:
            raise ArtefactError(f"{path} is empty; a model was expected")
        if not zipfile.is_zipfile(path):  # every model file is one, and torch would read much else
            raise ArtefactError(_describe_foreign(path))
        content = path.read_bytes()
        check(content, Kind.MODEL)  # that of a file without a seal is checked by the digest in it
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except ArtefactError:
        raise
    except DamagedError as error:
        previous = previous_of(path)
        hint = f"; the one before it is {previous}" if previous.exists() else ""
        raise ArtefactError(f"{path} is damaged: {error}{hint}") from None
    except OtherKindError as error:
        raise ArtefactError(f"{path} is not a model of EdgeNewton: {error}") from None
    except FileNotFoundError:
        raise ArtefactError(f"{path} does not exist; train a model first, for instance with `make demo`") from None
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # damaged bytes make torch's reader fail in any way
        # torch names the global that it refused to look up; a model file has none but those of tensors.
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise ArtefactError(f"{path} wants to run code when it is loaded; it was refused") from None
        raise ArtefactError(f"{path} is not a model that can be read, or is damaged") from None


def _describe_foreign(path: Path) -> str:
    with path.open("rb") as file:
        is_pickle = file.read(1) == pickle.PROTO
    if is_pickle:
        return f"{path} is a bare pickle, no model, and may want to run code when it is loaded; it was refused"
    return f"{path} is not a model that can be read, or is damaged"


def _check_format(path: Path, content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ArtefactError(f"{path} is not a model of EdgeNewton")
    version = content.get("format_version")
    if not isinstance(version, int):
        raise ArtefactError(f"{path} is damaged: it has no format version")
    if version > FORMAT_VERSION:
        raise ArtefactError(
            f"{path} has format version {version}; this release reads up to {FORMAT_VERSION}: install a newer one"
        )
    lacking = [key for key in _KEYS if key not in content]
    if lacking:
        raise ArtefactError(f"{path} is not a whole model: it lacks {', '.join(lacking)}")
