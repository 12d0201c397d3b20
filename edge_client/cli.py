"""The device's command `edge-client`."""

import logging
import signal
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_client.exchange import Exchange, ExchangeError, GradientExchange
from edge_client.inference import Artefact, ArtefactError, Recognizer
from edge_client.settings import SettingsError, parse_settings
from edge_client.tasks import SampleError, TaskError, load_task

app = typer.Typer(
    help="Trains a model on this device together with other devices, and recognises with it.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)


@app.command()
def train(
    coordinator: Annotated[
        str | None, typer.Option(help="Address of the coordinator, host:port; without it the device trains alone.")
    ] = None,
    session: Annotated[str, typer.Option(help="Session to join.")] = "default",
    device: Annotated[str, typer.Option(help="Id of this device, unique in the session.")] = "device-0",
    index: Annotated[int, typer.Option(help="Number of this device's partition of the data, from 0.", min=0)] = 0,
    count: Annotated[int, typer.Option(help="Number of partitions.", min=1)] = 1,
    config: Annotated[
        list[str] | None,
        typer.Option("--config", "-c", help="A setting, such as steps=50 or curvature=eva; may be repeated."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where to save the trained model.")] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="File for this device's state; if it is there, training goes on from it after a restart."),
    ] = None,
    save_every: Annotated[int, typer.Option(help="Steps between two savings of the state.", min=1)] = 20,
    reconnect_deadline_s: Annotated[
        float, typer.Option(help="Seconds to look for a coordinator that was lost.", min=0)
    ] = 120.0,
) -> None:
    """Train on this device, one batch after the other, in step with the other devices of a session.

    With --state a supervisor may kill and restart it at any time: it takes its place again.
    """
    from edge_client.device_state import DeviceState
    from edge_client.trainer import TrainedStep, Trainer

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    exchange: Exchange | None = None
    try:
        settings = parse_settings(config or [])
        if coordinator is not None:
            exchange = GradientExchange.join(
                coordinator, session=session, device=device, reconnect_deadline_s=reconnect_deadline_s
            )
        saved = DeviceState.load(state, session) if state is not None else None
        if saved is not None:
            _out.print(f"{device}: goes on from {state} at step {saved.step}")
        trainer = Trainer(
            settings,
            index,
            count,
            exchange,
            weights=saved.model if saved is not None else None,
            state=saved.optimizer if saved is not None else None,
        )

        def save(step: TrainedStep | None) -> None:
            if state is not None and (step is None or (step.step + 1) % save_every == 0):
                DeviceState(session, trainer.model.state_dict(), trainer.state_dict()).save(state)

        with _out.status(f"{device}: training"):
            report = trainer.train(max(0, settings.steps - trainer.optimizer.steps), on_step=save)
        save(None)
        if exchange is not None:
            exchange.close()
    except (SettingsError, TaskError, ExchangeError, ValueError) as error:
        if exchange is not None:
            exchange.close(failure=str(error))
        _fail(str(error))
    except KeyboardInterrupt:
        if exchange is not None:
            exchange.close(failure="it was stopped")
        _fail("stopped", code=130)
    result = trainer.evaluate()
    _out.print(
        f"{device}: {report.steps} steps in {report.seconds:.1f} s, loss {report.loss:.4f}, "
        f"{result.correct} of {result.samples} held-out samples right, sent {report.bytes_sent:,} and received "
        f"{report.bytes_received:,} bytes, weights {report.weights_digest[:16]}"
    )
    if output is not None:
        Artefact.of(trainer.task, settings.task, trainer.model, trainer.optimizer.steps).save(output)
        _out.print(f"model saved as {output}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A trained model (model.pt).")],
    samples: Annotated[list[Path], typer.Argument(help="Files to recognise.")],
) -> None:
    """Recognise samples: print the label of each file, its probability, and the true label if the file tells it."""
    try:
        recognizer = Recognizer.load(model)
        predictions = recognizer.predict(samples)
    except (ArtefactError, SampleError, TaskError) as error:
        _fail(str(error))
    table = Table("file", "label", "probability", "true label")
    for path, prediction in zip(samples, predictions, strict=True):
        table.add_row(str(path), prediction.label, f"{prediction.probability:.1%}", recognizer.true_label(path) or "")
    _out.print(table)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint that the ServerApp wrote (round-N.safetensors).")],
    output: Annotated[Path, typer.Option(help="Where to write the model.")] = Path("model.pt"),
) -> None:
    """Make a model for recognition out of a checkpoint of training."""
    try:
        artefact = Artefact.from_checkpoint(checkpoint)
        artefact.save(output)
    except (ArtefactError, TaskError) as error:
        _fail(str(error))
    _out.print(f"model of task {artefact.task!r} after {artefact.step} steps saved as {output}")


@app.command()
def tasks(name: Annotated[str, typer.Argument(help="Name or import path of the task.")] = "digits") -> None:
    """Show what a task expects and recognises."""
    try:
        task = load_task(name)
    except TaskError as error:
        _fail(str(error))
    _out.print(f"{task.name}: input {' x '.join(map(str, task.input_shape))}; labels {', '.join(task.labels)}")


def _fail(message: str, code: int = 1) -> NoReturn:
    _err.print(f"[bold red]error[/]: {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def main() -> None:
    """Run the command."""
    app()
