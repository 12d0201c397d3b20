"""Writing a model to a file, or saying why it cannot be."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgenewton.common.console import err, fail

if TYPE_CHECKING:
    from edge_client.inference import Artefact


def check_output(path: Path | None) -> None:
    """Fail before the work, not after it, where no file can be written; a folder that is not there is made, and named.

    Args:
        path: of the file; None for none.

    """
    if path is None:
        return
    if path.is_dir():
        fail(f"{path} is a folder; name a file for the model, such as {path / 'model.pt'}")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            err.print(f"made the folder {path.parent}")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        fail(f"no model can be written to {path}: {error.strerror or error}")


def save(artefact: "Artefact", path: Path) -> None:
    """Write a model, or say why it cannot be."""
    try:
        artefact.save(path)
    except (OSError, RuntimeError) as error:  # torch writes, and a full disk is a RuntimeError to it
        fail(f"the model could not be written to {path}: {error}")
