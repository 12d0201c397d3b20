"""The operator's command `edge-coordinator`."""

import typer

from coordinator.cli.ca import app as ca
from coordinator.cli.report import report
from coordinator.cli.serve import serve
from coordinator.cli.watch import watch

app = typer.Typer(
    help="Synchronises the gradients of edge devices that train one model together.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
for _command in (serve, watch, report):
    app.command()(_command)
app.add_typer(ca, name="ca")


def main() -> None:
    """Run the command."""
    app()
