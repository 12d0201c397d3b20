"""`edge-client new`: a project of one's own, ready to run."""

import os
from pathlib import Path
from typing import Annotated

import typer
from edgenewton.common.console import fail, out, warn

FLOWER_HOME = "FLWR_HOME"


def new(
    name: Annotated[str, typer.Argument(help="Name of the project, such as worn-bearings; also that of its folder.")],
    flower: Annotated[bool, typer.Option("--flower", help="Make it a Flower app as well, for `flwr run .`.")] = False,
) -> None:
    """Write a project of your own into a new folder here: a task with model and data, its tests, and how to run it.

    It runs as it is, on made-up data: put yours in their place.
    """
    from edge_client.scaffold import ProjectName, ProjectNameError, write_project

    folder = Path(name)
    try:
        project = ProjectName(name)
        written = write_project(project, folder, flower=flower)
    except ProjectNameError as error:
        fail(str(error), code=2)
    except FileExistsError:
        fail(f"{folder} exists already; choose another name, or remove it", code=2)
    except OSError as error:
        fail(f"{folder.absolute()} cannot be written: {error.strerror or error}")
    for path in written:
        out.print(str(folder / path))
    home = os.environ.get(FLOWER_HOME)
    if flower and home and Path(home).expanduser().resolve().is_relative_to(folder.resolve()):
        warn(
            f"{FLOWER_HOME} is {home}, inside {folder}: unless .gitignore names it, each run is bundled with all those "
            "before it. Choose a folder elsewhere"
        )
    out.print(f"Begin with {folder / project.package / 'task.py'}, and see {folder / 'README.md'}")
