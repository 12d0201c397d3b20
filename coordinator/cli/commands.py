"""The subcommands of `edge-coordinator`."""

from edgenewton.common.command_line import CommandLine

from coordinator.cli.ca import app as ca
from coordinator.cli.files import files
from coordinator.cli.report import report
from coordinator.cli.serve import serve
from coordinator.cli.verify import verify
from coordinator.cli.watch import watch

app = CommandLine("Synchronises the gradients of edge devices that train one model together.")
for _command in (serve, watch, report, verify, files):
    app.command()(_command)
app.add_typer(ca, name="ca")
