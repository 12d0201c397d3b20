"""Checkpoints of a Flower run: weights as safetensors, with the task's name and the step in the metadata."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgenewton.common.files import write_atomically
from flwr.app import Array, ArrayRecord
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as dump_arrays

from coordinator.flower.history import first_rounds


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
    """Write `round-N.safetensors` and return its path."""
    metadata = {"task": task, "step": str(step), "round": str(server_round)}
    data = dump_arrays({name: array.numpy() for name, array in arrays.items()}, metadata)
    path = folder / f"round-{server_round}.safetensors"
    write_atomically(path, data)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Return what `save_checkpoint` wrote, with the history that lies beside it.

    Raises:
        CheckpointError: the file is missing, damaged, or no checkpoint.

    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = ArrayRecord({name: Array(file.get_tensor(name)) for name in file.keys()})  # noqa: SIM118
        number = int(metadata["round"])
        return Checkpoint(
            path, metadata["task"], number, int(metadata["step"]), arrays, first_rounds(path.parent, number)
        )
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path} on the machine of the SuperLink") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint of a run, or damaged: {error}") from None
