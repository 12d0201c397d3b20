"""The device's command `edge-client`."""

from edgenewton.common.command_line import CommandLine

from edge_client.cli.daemon import daemon, promote, status
from edge_client.cli.evaluate import evaluate
from edge_client.cli.export import export
from edge_client.cli.fetch import fetch
from edge_client.cli.new import new
from edge_client.cli.recognise import predict, tasks
from edge_client.cli.serve import serve
from edge_client.cli.train import train
from edge_client.cli.train_help import TrainCommand
from edge_client.cli.verify import verify

app = CommandLine("Trains a model on this device together with other devices, and recognises with it.")
app.command(cls=TrainCommand)(train)
for _command in (new, fetch, predict, evaluate, export, serve, daemon, status, promote, tasks, verify):
    app.command()(_command)


def main() -> None:
    """Run the command."""
    app()
