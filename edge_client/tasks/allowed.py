"""Whose code may be run because a file, or a run from elsewhere, names it as a task.

To import a module is to run it. A name on a command line is its user's choice; one in a model file is the choice of
whoever made the file. It counts if it is a task of this package, one that an installed package announces as an entry
point, or one that the operator allows.
"""

from collections.abc import Collection
from importlib.metadata import entry_points

from edge_client.tasks.errors import TaskError

ENTRY_POINT_GROUP = "edgenewton.tasks"
"""Where installed packages announce their tasks, in their metadata: `name = "package.module:Class"`."""
_OWN_TASKS = "edge_client.tasks."


class TaskNotAllowedError(TaskError):
    """A file, or a run from elsewhere, names a task whose code the operator has not allowed."""


def check_allowed(path: str, allowed: Collection[str]) -> None:
    """Check an import path "package.module:Class" before anything of it is imported.

    Args:
        path: from a file, or from elsewhere.
        allowed: import paths that the operator allows.

    Raises:
        TaskNotAllowedError: it is not allowed; the text says how it can be.

    """
    if path in allowed or path.startswith(_OWN_TASKS) or path in _announced():
        return
    raise TaskNotAllowedError(
        f"task {path!r} is not of this package, and to load it is to run its code: if you trust it, add "
        f"--allow-task {path} (in Python allow=[{path!r}], in a daemon's configuration allow_tasks), or install a "
        f"package that announces it as an entry point of {ENTRY_POINT_GROUP!r}"
    )


def check_foreign_task(name: str, allow: Collection[str] = ()) -> None:
    """Check that the code of a task that a file, or somebody else, names may be run.

    Raises:
        TaskNotAllowedError: it may not.

    """
    if ":" in name:  # another name is that of a built-in task, or of no code that could be run
        check_allowed(name, allow)


def _announced() -> set[str]:
    return {entry_point.value for entry_point in entry_points(group=ENTRY_POINT_GROUP)}
