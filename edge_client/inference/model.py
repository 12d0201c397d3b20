"""What is known of a model, whatever file it came from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from edge_client.inference.errors import ArtefactError

if TYPE_CHECKING:
    from edge_client.inference.artefact import Artefact
    from edge_client.tasks import Task


@dataclass(frozen=True)
class ModelInfo:
    """What a model recognises, and where it came from."""

    task: str
    """What `load_task` takes."""
    labels: tuple[str, ...]
    """What the outputs mean, in their order."""
    raw_shape: tuple[int, ...]
    """Shape of one decoded sample."""
    raw_dtype: str
    """Of a decoded sample, as torch names it: "uint8"."""
    step: int
    """Training steps behind the weights."""
    digest: str
    """SHA-256 of the artefact."""
    software_version: str

    @classmethod
    def of(cls, artefact: "Artefact", task: "Task") -> Self:
        """Return what is known of an artefact of a task."""
        return cls(
            task=artefact.task,
            labels=artefact.labels,
            raw_shape=tuple(task.raw_shape),
            raw_dtype=str(task.raw_dtype).removeprefix("torch."),
            step=artefact.step,
            digest=artefact.digest,
            software_version=artefact.software_version,
        )

    @property
    def numpy_dtype(self) -> "np.dtype[Any]":
        """`raw_dtype` for NumPy."""
        return np.dtype(self.raw_dtype)

    def blank(self, samples: int) -> NDArray[Any]:
        """Return decoded samples of zeros, `[samples, *raw_shape]`."""
        return np.zeros((samples, *self.raw_shape), self.numpy_dtype)

    def to_json(self, **more: object) -> str:
        """Return it as JSON, with more entries."""
        return json.dumps(asdict(self) | more)

    @classmethod
    def from_json(cls, text: str, newest: int) -> Self:
        """Return what `to_json` wrote with an entry `format_version`.

        Args:
            text: the JSON.
            newest: format version that this release reads.

        Raises:
            ArtefactError: it is of a newer release, or not such JSON.

        """
        try:
            content = json.loads(text)
            version = content["format_version"]
            if version > newest:
                raise ArtefactError(
                    f"the model has format version {version}; this release reads up to {newest}: install a newer one"
                )
            return cls.from_mapping(content)
        except (KeyError, TypeError, json.JSONDecodeError):
            raise ArtefactError("the model's metadata do not say what it recognises") from None

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> Self:
        """Return what a parsed JSON object says.

        Raises:
            KeyError: an entry is missing.

        """
        entries = {name: content[name] for name in cls.__dataclass_fields__}
        for name in ("labels", "raw_shape"):
            entries[name] = tuple(entries[name])
        return cls(**entries)
