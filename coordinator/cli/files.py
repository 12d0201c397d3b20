"""`edge-coordinator files`: what the docs use beside the commands."""

from pathlib import Path
from typing import Annotated

import typer
from edgenewton.common.console import fail, out

from coordinator.shipped import ShippedFilesError, copy_shipped


def files(folder: Annotated[Path, typer.Argument(help="Where to put them: a new or empty folder.")]) -> None:
    """Copy out the compose files, the unit of systemd, and the dashboards, laid out as the docs have them."""
    try:
        copy_shipped(folder)
    except ShippedFilesError as error:
        fail(str(error))
    out.print(
        f"{folder}: docker/ (compose files, Grafana's dashboards), deploy/ (systemd), and the code that an image is "
        "built of"
    )
