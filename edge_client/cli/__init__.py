"""The device's command `edge-client`."""

import typer

from edge_client.cli.daemon import daemon, promote, status
from edge_client.cli.evaluate import evaluate
from edge_client.cli.export import export
from edge_client.cli.recognise import predict, tasks
from edge_client.cli.serve import serve
from edge_client.cli.train import train

app = typer.Typer(
    help="Trains a model on this device together with other devices, and recognises with it.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
for _command in (train, predict, evaluate, export, serve, daemon, status, promote, tasks):
    app.command()(_command)


def main() -> None:
    """Run the command."""
    app()
