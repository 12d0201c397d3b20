"""Decoders: how a raw sample becomes numbers, for a device that recognises without PyTorch.

A built-in task decodes with the decoder beside it here; none imports torch. Of a task of one's own, the task itself
decodes.
"""

import importlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Protocol

from edgenewton.common.extras import MissingExtraError, needing
from numpy.typing import NDArray

from edge_client.tasks.allowed import check_foreign_task
from edge_client.tasks.errors import TaskError

if TYPE_CHECKING:
    from edge_client.tasks.task import Task

_HERE = "edge_client.tasks.decoders"
DECODERS = {
    "digits": (f"{_HERE}.digits:DigitsDecoder", "images"),
    "fashion": (f"{_HERE}.fashion:FashionDecoder", "images"),
    "fashion-groupnorm": (f"{_HERE}.fashion:FashionDecoder", "images"),
    "fashion-lora": (f"{_HERE}.fashion:FashionDecoder", "images"),
    "fashion-vit": (f"{_HERE}.fashion:FashionDecoder", "images"),
    "keywords": (f"{_HERE}.sounds:KeywordsDecoder", "sound"),
    "languages": (f"{_HERE}.sounds:LanguagesDecoder", "sound"),
    "leaves": (f"{_HERE}.leaves:LeavesDecoder", "recognition"),
    "motion": (f"{_HERE}.motion:MotionDecoder", "recognition"),
    "text": (f"{_HERE}.text:TextDecoder", "recognition"),
}
"""Of the built-in tasks: where each is, and the extra with what it needs."""


class Decoder(Protocol):
    """Decodes the raw samples of one task."""

    def decode(self, sample: object) -> NDArray[Any]:
        """Return a raw sample as numbers, `[*raw_shape]`: see `Task.decode`.

        Raises:
            SampleError: the sample is missing, damaged or of a wrong kind or size.

        """

    def true_label(self, sample: object) -> str | None:
        """Return the label that a raw sample carries itself, if it does."""


def load_foreign_decoder(task: str, allow: Collection[str] = ()) -> "Decoder | Task":
    """Return what decodes the samples of a task that a model file names: its decoder here, else the task.

    Args:
        task: name of a built-in task, or an import path.
        allow: import paths that are allowed, besides those of this package and of installed entry points.

    Raises:
        TaskNotAllowedError: its code may not be run; nothing of it is imported.
        TaskError: there is no such task, or it lacks a package; the text says what to install.

    """
    check_foreign_task(task, allow)
    try:
        if task in DECODERS:
            path, extra = DECODERS[task]
            return _load(path, extra, task)
        with needing(f"decoding samples of task {task!r}", "training"):
            from edge_client.tasks import load_task
            from edge_client.tasks.task import Task as _  # noqa: F401  # what load_task needs, too
        return load_task(task)
    except MissingExtraError as error:
        raise TaskError(str(error)) from None


def _load(path: str, extra: str, task: str) -> Decoder:
    module, _, name = path.partition(":")
    with needing(f"decoding files of task {task!r}", extra):
        decoder: Decoder = getattr(importlib.import_module(module), name)()
    return decoder
