"""Tasks: what is trained and recognised. A built-in task has a name, one of your own its import path."""

import importlib

from edge_client.tasks.task import Partition, SampleError, Samples, Task, TaskError

TASKS = {"digits": "edge_client.tasks.digits:DigitsTask"}
"""Built-in tasks and where they are; they are imported when they are needed."""

__all__ = ["TASKS", "Partition", "SampleError", "Samples", "Task", "TaskError", "load_task"]


def load_task(name: str) -> Task:
    """Return the task of a name, or of an import path "package.module:Class" (or an instance instead of a class).

    Raises:
        TaskError: there is no such task; the text says what is missing.

    """
    path = TASKS.get(name, name)
    module_name, colon, attribute = path.partition(":")
    if not colon:
        raise TaskError(
            f"task {name!r} is unknown; known are {', '.join(TASKS)}, and import paths like 'package.module:Class'"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise TaskError(f"task {name!r}: module {module_name!r} cannot be imported: {error}") from None
    found = getattr(module, attribute, None)
    if found is None:
        raise TaskError(f"task {name!r}: module {module_name!r} has no {attribute!r}")
    task = found() if isinstance(found, type) and issubclass(found, Task) else found
    if not isinstance(task, Task):
        raise TaskError(f"task {name!r}: {attribute!r} is a {type(task).__name__}, not an edge_client.tasks.Task")
    return task
