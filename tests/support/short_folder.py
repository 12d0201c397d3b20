"""A temporary folder whose path is short, whatever that of the tests' own folder is."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_folder() -> Iterator[Path]:
    """Make a folder for Unix domain sockets, whose paths may have 107 bytes; it is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="edgenewton-", dir="/tmp") as name:
        yield Path(name)
