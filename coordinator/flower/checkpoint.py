"""Checkpoints of a Flower run: weights as safetensors, with the task's name, the step and a seal in the metadata.

The seal is in the file, not beside it, so that one rename replaces both; and any reader of safetensors takes the file.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgenewton.common.files import write_atomically
from edgenewton.common.sealed_file import (
    KEY,
    DamagedError,
    Kind,
    OtherKindError,
    blank_seal,
    fill,
    read_checked,
    tell_aside,
    tensors_metadata,
)
from flwr.app import Array, ArrayRecord
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as dump_arrays

from coordinator.flower.history import first_rounds

log = logging.getLogger(__name__)

_NAME = re.compile(r"round-(\d{1,9})\.safetensors")


class CheckpointError(ValueError):
    """A checkpoint cannot be gone on from; the text names it and says why."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from."""

    path: Path
    task: str
    round: int
    """Rounds behind it."""
    step: int
    """Number of the step that comes next."""
    arrays: ArrayRecord
    history: list[dict[str, Any]]
    """Of those rounds, as far as it is known."""

    def check(self, task: str, initial: ArrayRecord) -> None:
        """Check that it is of a task, and has arrays like the initial ones.

        Raises:
            CheckpointError: it is of another task or model.

        """
        if self.task != task:
            raise CheckpointError(f"{self.path} is of task {self.task!r}, and the run trains {task!r}")
        ours, theirs = ({name: tuple(array.shape) for name, array in a.items()} for a in (self.arrays, initial))
        for name in ours | theirs:
            if ours.get(name) != theirs.get(name):
                raise CheckpointError(
                    f"{self.path} does not fit the model of task {task!r}: {name!r} has shape {ours.get(name)} there "
                    f"and {theirs.get(name)} in the model"
                )


def save_checkpoint(arrays: ArrayRecord, folder: Path, server_round: int, step: int, task: str) -> Path:
    """Write `round-N.safetensors` and return its path.

    Raises:
        OSError: it cannot be written.

    """
    metadata = {"task": task, "step": str(step), "round": str(server_round), KEY: blank_seal(Kind.ROUND_WEIGHTS)}
    data = fill(dump_arrays({name: array.numpy() for name, array in arrays.items()}, metadata))
    path = folder / f"round-{server_round}.safetensors"
    write_atomically(path, data)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Return what `save_checkpoint` wrote, with the history that lies beside it.

    A damaged file is set aside, and the last good round before it in its folder is taken; the log says so.

    Raises:
        CheckpointError: the file is missing, no checkpoint, or damaged without a good one before it.

    """
    try:
        return _read(path)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path} on the machine of the SuperLink") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except OtherKindError as error:
        raise CheckpointError(f"{path} is no checkpoint of a run: {error}") from None
    except DamagedError as error:
        earlier = list(_earlier(path))
        if not earlier:
            raise CheckpointError(
                f"{path} is no checkpoint of a run, or damaged: {error}; there is none of an earlier round beside it: "
                "begin the run anew, without resume"
            ) from None
        tell_aside(path, error)
        reason = str(error)
    for other in earlier:
        try:
            found = _read(other)
        except DamagedError as error:
            tell_aside(other, error)
        except (OSError, OtherKindError) as error:
            log.warning("%s cannot be used: %s", other, error)
        else:
            log.warning("the run goes on from %s in place of %s", other, path)
            return found
    raise CheckpointError(f"{path} is damaged: {reason}; so are those of earlier rounds beside it: begin the run anew")


def _earlier(path: Path) -> Iterator[Path]:
    """Give the checkpoints of the rounds before, the last of them first."""
    named = _NAME.fullmatch(path.name)
    for number in range(int(named[1]) - 1 if named else 0, 0, -1):
        other = path.with_name(f"round-{number}.safetensors")
        if other.exists():
            yield other


def _read(path: Path) -> Checkpoint:
    metadata, arrays = read_checked(path, Kind.ROUND_WEIGHTS, _parse)
    try:
        number, step, task = int(metadata["round"]), int(metadata["step"]), metadata["task"]
    except (KeyError, ValueError):
        raise OtherKindError("its metadata name no round, step and task") from None
    return Checkpoint(path, task, number, step, arrays, first_rounds(path.parent, number))


def _parse(data: bytes) -> tuple[dict[str, str], ArrayRecord]:
    metadata = tensors_metadata(data)
    try:
        return metadata, ArrayRecord({name: Array(values) for name, values in load_arrays(data).items()})
    except (SafetensorError, KeyError) as error:
        raise DamagedError(str(error)) from None
