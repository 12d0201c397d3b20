"""`edge-coordinator report`: a run as one HTML page to send to someone."""

from pathlib import Path
from typing import Annotated

import typer
from edgenewton.common.command_line import Json
from edgenewton.common.console import err, fail, out, print_json
from edgenewton.common.files import write_atomically


def report(
    run: Annotated[Path, typer.Argument(help="Record of `serve --record`, or output folder of a Flower run.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; by default beside the run, named report.html.")
    ] = None,
    session: Annotated[str | None, typer.Option(help="Session to tell of; all of them unless given.")] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about a run: plots, devices, bytes, who was left out, settings.

    It refers to nothing outside it. A run that is still on is told of as far as it is recorded. With --json its figures
    are printed, and there is a page only with --output.
    """
    from coordinator.report.run import ReportError, read_run

    path = output or (run / "report.html" if run.is_dir() else run.with_name("report.html"))
    try:
        found = read_run(run, session)
        if as_json:
            from coordinator.report.figures import figures

            print_json(figures(found))
        if output is not None or not as_json:
            from coordinator.report.html import render  # brings matplotlib, which no other subcommand needs

            write_atomically(path, render(found).encode())
    except ReportError as error:
        fail(str(error))
    except OSError as error:
        fail(f"the report could not be written to {path}: {error.strerror or error}")
    if output is not None or not as_json:
        (err if as_json else out).print(f"report {path}")
