"""The subcommand `verify` of both commands."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from edgenewton.common.console import out, print_json
from edgenewton.common.file_report import Other, Verdict, report_on

Files = Annotated[list[Path], typer.Argument(help="Files that this software wrote, on a device or a coordinator.")]

_CODES = {Verdict.WHOLE: 0, Verdict.DAMAGED: 1, Verdict.UNREADABLE: 1, Verdict.NO_DIGEST: 3}


def verify_files(files: list[Path], *, as_json: bool, others: Other | None = None) -> NoReturn:
    """Print what files are, and end with 0 if all are whole, 1 if one is damaged, and 3 if one has no digest."""
    verdicts = set()
    for path in files:
        found = report_on(path, others)
        verdicts.add(found.verdict)
        if as_json:
            print_json(asdict(found), is_line=True)
        else:
            out.print(str(found))
    codes = {_CODES[verdict] for verdict in verdicts}
    raise typer.Exit(1 if 1 in codes else max(codes, default=0))
