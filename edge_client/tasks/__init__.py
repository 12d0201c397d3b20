"""Tasks: what is trained and recognised. A built-in task has a name, one of your own its import path."""

import importlib
from collections.abc import Collection
from contextlib import nullcontext
from typing import TYPE_CHECKING

from edgenewton.common.extras import MissingExtraError, needing
from edgenewton.common.suggestions import suggestion

from edge_client.tasks.allowed import TaskNotAllowedError, check_foreign_task
from edge_client.tasks.errors import SampleError, TaskError

if TYPE_CHECKING:
    from edge_client.tasks.data import DataError
    from edge_client.tasks.task import Data, Partition, PartitionKind, Samples, Task

TASKS = {
    "digits": "edge_client.tasks.digits:DigitsTask",
    "fashion": "edge_client.tasks.fashion:FashionTask",
    "fashion-groupnorm": "edge_client.tasks.fashion:FashionGroupNormTask",
    "fashion-lora": "edge_client.tasks.fashion:FashionLoraTask",
    "fashion-vit": "edge_client.tasks.fashion:FashionVitTask",
    "keywords": "edge_client.tasks.keywords:KeywordsTask",
    "languages": "edge_client.tasks.languages:LanguagesTask",
    "leaves": "edge_client.tasks.leaves:LeavesTask",
    "motion": "edge_client.tasks.motion:MotionTask",
    "text": "edge_client.tasks.text:TextTask",
}
"""Built-in tasks and where they are; they are imported when they are needed."""

__all__ = [
    "TASKS",
    "Data",
    "DataError",
    "Partition",
    "PartitionKind",
    "SampleError",
    "Samples",
    "Task",
    "TaskError",
    "TaskNotAllowedError",
    "check_foreign_task",
    "load_foreign_task",
    "load_task",
]


_MODULES = {"DataError": "data"} | dict.fromkeys(("Data", "Partition", "PartitionKind", "Samples", "Task"), "task")


def __getattr__(name: str) -> object:
    # Imported when asked for: what only recognises an exported model needs no PyTorch.
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_foreign_task(name: str, allow: Collection[str] = ()) -> "Task":
    """Return the task that a file, or somebody else, names: as `load_task`, if its code may be run.

    Args:
        name: of a built-in task, or an import path.
        allow: import paths that are allowed, besides those of this package and of installed entry points.

    Raises:
        TaskNotAllowedError: its code may not be run; nothing of it is imported.
        TaskError: there is no such task, or it cannot be used.

    """
    check_foreign_task(name, allow)
    return load_task(name)


def load_task(name: str) -> "Task":
    """Return the task of a name, or of an import path "package.module:Class" (or an instance instead of a class).

    Raises:
        TaskError: there is no such task, or it cannot be used; the text says what is missing.

    """
    with needing("a task", "training"):
        from edge_client.tasks.task import Task

    module_name, _, attribute = TASKS.get(name, name).partition(":")
    if not (module_name and attribute):
        raise TaskError(
            f"task {name!r} is unknown; known are {', '.join(TASKS)}, and import paths like 'package.module:Class'"
            f"{suggestion(name, TASKS)}"
        )
    try:
        with needing(f"task {name!r}", "tasks") if name in TASKS else nullcontext():
            module = importlib.import_module(module_name)
    except MissingExtraError as error:
        raise TaskError(str(error)) from None
    except Exception as error:  # a user's module runs here, and may raise anything
        raise TaskError(f"task {name!r}: module {module_name!r} cannot be imported: {_describe(error)}") from error
    if not hasattr(module, attribute):
        raise TaskError(f"task {name!r}: module {module_name!r} has no {attribute!r}")
    found = getattr(module, attribute)
    if isinstance(found, type) and issubclass(found, Task):
        try:
            found = found()
        except Exception as error:  # so does a user's constructor
            raise TaskError(f"task {name!r}: {attribute!r} cannot be created: {_describe(error)}") from error
    if not isinstance(found, Task):
        raise TaskError(f"task {name!r}: {attribute!r} in {module_name!r} is not an edge_client.tasks.Task")
    lacking = [needed for needed in ("name", "labels", "input_shape") if not hasattr(found, needed)]
    if lacking:
        raise TaskError(f"task {name!r}: {attribute!r} does not set {', '.join(lacking)}")
    return found


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
