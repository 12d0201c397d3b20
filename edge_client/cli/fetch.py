"""`edge-client fetch`: gets the data of tasks that have none in this package."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from edgenewton.common.command_line import Json
from edgenewton.common.console import err, fail, out, print_json
from edgenewton.common.extras import needing
from edgenewton.common.tables import Table

if TYPE_CHECKING:
    from edge_client.tasks.packages import PackagedTask


def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TASK]...", help="Names or import paths of tasks; 'all' for all; none to list them."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE|FOLDER",
            help="Take the data from here instead of downloading: a package's file (.deb, .whl), a folder of them, or "
            "a folder in which they are unpacked.",
        ),
    ] = None,
    deadline_s: Annotated[float, typer.Option(help="Seconds for each download.", min=1)] = 600.0,
    again: Annotated[bool, typer.Option("--again", help="Fetch also what is here already.")] = False,
    as_json: Json = False,
) -> None:
    """Get the data that tasks train on, from packages of Debian (by apt-get) and Python (by pip), without root.

    Nothing is installed: what is needed is taken out of the package and kept in a cache folder (EDGENEWTON_CACHE, by
    default ~/.cache/edgenewton). Recognising needs no data. Without names it lists what there is.
    """
    with needing("to fetch tasks' data", "tasks"):
        from edge_client.tasks import TASKS, TaskError, load_task
        from edge_client.tasks.packages import PackagedTask

    try:
        if not names:
            listed = [task for name in TASKS if isinstance(task := load_task(name), PackagedTask)]
            if as_json:
                print_json([_figures(task) for task in listed])
            else:
                out.print(_table(listed))
            return
        here = []
        chosen = dict.fromkeys(TASKS if "all" in names else names)
        for task in map(load_task, chosen):
            if isinstance(task, PackagedTask):
                (err if as_json else out).print(_fetch(task, source, deadline_s, again=again))
                here.append(task)
            elif task.name in names:
                (err if as_json else out).print(f"{task.name}: needs no data from elsewhere")
        if as_json:
            print_json([_figures(task) for task in here])
    except TaskError as error:
        fail(str(error))


def _fetch(task: "PackagedTask", source: Path | None, deadline_s: float, *, again: bool) -> str:
    was_here = task.is_fetched and not again
    with err.status(f"{task.name}: fetching {task.data.about}"):
        task.fetch(source, deadline_s, again=again)  # what is here but damaged, too
    size_mb = task.data.path.stat().st_size / 1e6
    kept = "here already" if was_here else "kept"
    return f"{task.name}: {task.data.about}: {kept}, {task.data.path} ({size_mb:.1f} MB)"


def _figures(task: "PackagedTask") -> dict[str, object]:
    data = task.data
    return {
        "task": task.name,
        "data": data.about,
        "packages": [{"name": package.name, "registry": package.registry} for package in data.packages],
        "download_mb": data.download_mb,
        "kept_mb": data.kept_mb,
        "path": data.path if task.is_fetched else None,
    }


def _table(tasks: "list[PackagedTask]") -> Table:
    table = Table("task", "data", "packages", "download", "kept", "here")
    for task in tasks:
        data = task.data
        packages = ", ".join(f"{package.name} ({package.registry})" for package in data.packages)
        here = str(data.path) if task.is_fetched else "no"
        table.add(task.name, data.about, packages, f"{data.download_mb:g} MB", f"{data.kept_mb:g} MB", here)
    return table
