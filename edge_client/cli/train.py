"""`edge-client train`: one device trains, alone or with others."""

import logging
import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from edgenewton.common.command_line import Json
from edgenewton.common.console import err, fail, out, print_json, warn
from edgenewton.common.extras import needing

from edge_client.cli.model_file import check_output, save

if TYPE_CHECKING:
    from edgenewton.common.evaluation import Evaluation

    from edge_client.exchange import Exchange
    from edge_client.exchange.remote import TlsFiles
    from edge_client.training.work import TrainingReport


def train(
    coordinator: Annotated[
        str | None, typer.Option(help="Address of the coordinator, host:port; without it the device trains alone.")
    ] = None,
    session: Annotated[str, typer.Option(help="Session to join.")] = "default",
    device: Annotated[
        str | None,
        typer.Option(
            help="Id of this device, unique in the session; the name in its certificate, or device-0, unless given."
        ),
    ] = None,
    index: Annotated[int, typer.Option(help="Number of this device's partition of the data, from 0.", min=0)] = 0,
    count: Annotated[int, typer.Option(help="Number of partitions.", min=1)] = 1,
    tls: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|CA,CERTIFICATE,KEY",
            envvar="EDGENEWTON_TLS",
            help="This device's certificate: the folder that `edge-coordinator ca issue` wrote, or three files.",
        ),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            "-c",
            metavar="NAME=VALUE",
            help="A setting, such as steps=50 or curvature=eva; may be repeated. They are listed below.",
        ),
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
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REQUIREMENT",
            help="Join only what gives this: secure-aggregation, or secure-aggregation>=N for sums of at least N "
            "devices; epsilon<=E for a privacy budget of at most E, delta<=D (1e-5 unless given). Put it in quotes; "
            "several with commas between them, or repeated.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train on this device, one batch after the other, in step with the other devices of a session.

    With --state a supervisor may kill and restart it at any time: it takes its place again.
    """
    # What training needs takes seconds to import, and other subcommands need none of it.
    with needing("to train", "training"):
        from edge_client.cli.training_view import TrainingView
        from edge_client.exchange import ExchangeError
        from edge_client.exchange.remote import TlsFiles
        from edge_client.inference import Artefact
        from edge_client.tasks import TaskError
        from edge_client.training.checkpoint import DeviceCheckpoint
        from edge_client.training.run import Saving, train_in_session
        from edge_client.training.settings import SettingsError, parse_settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    check_output(output)
    tell = err if as_json else out
    try:
        settings = parse_settings(config or [])
        files = TlsFiles.parse(tls) if tls else None
        device = device or (files.read().identity.name if files else "device-0")
        saved = DeviceCheckpoint.load(state, session) if state is not None else None
        if saved is not None:
            tell.print(f"{device}: goes on from {state} at step {saved.step}")
        saving = Saving(lambda current: current.save(state), save_every) if state is not None else None
        with TrainingView(device, settings.steps, settings.epsilon, console=tell) as view:
            trained = train_in_session(
                session,
                settings,
                index,
                count,
                until_step=settings.steps,
                connect=_exchange(
                    coordinator, session, device, settings.steps, reconnect_deadline_s, files, require or ()
                ),
                weights=saved.model if saved is not None else None,
                state=saved.optimizer if saved is not None else None,
                on_step=view,
                saving=saving,
            )
    except (SettingsError, TaskError, ExchangeError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("stopped", code=130)
    report, trainer = trained.report, trained.trainer
    if report.ended:
        warn(report.ended)
    if saving is not None and saving.trouble:
        warn(f"the last state is not saved: {saving.trouble}")
    result = trainer.evaluate()
    if output is not None:
        with trainer.optimizer.averaged():
            model = Artefact.of(trainer.task, settings.task, trainer.model, trainer.optimizer.current_step)
        save(model, output)
    if as_json:
        budget = None if report.epsilon is None else {"epsilon": settings.epsilon, "delta": settings.delta}
        print_json(_figures(device, session, report, result) | {"budget": budget, "output": output})
        return
    right = "no held-out samples"
    if result.samples:
        right = f"accuracy {result.accuracy:.1%} ({result.correct} of {result.samples} held-out samples right)"
    # With a privacy budget no device tells its loss.
    told = f"loss {report.loss:.4f}"
    if report.epsilon is not None:
        told = f"epsilon {report.epsilon:.3g} of {settings.epsilon:g} at delta {settings.delta:g}"
    out.print(
        f"{device}: {report.steps} steps in {report.seconds:.1f} s, {told}, {right}, "
        f"sent {report.bytes_sent:,} and received {report.bytes_received:,} bytes, weights {report.weights_digest[:16]}"
    )
    if output is not None:
        out.print(f"model saved as {output}")


def _figures(device: str, session: str, report: "TrainingReport", result: "Evaluation") -> dict[str, Any]:
    return {
        "device": device,
        "session": session,
        **asdict(report),
        "loss": report.loss if math.isfinite(report.loss) else None,
        "held_out": {
            "correct": result.correct,
            "samples": result.samples,
            "accuracy": result.accuracy if result.samples else None,
            "loss": result.loss,
        },
    }


def _exchange(
    coordinator: str | None,
    session: str,
    device: str,
    run_steps: int,
    reconnect_deadline_s: float,
    tls: "TlsFiles | None",
    require: Sequence[str],
) -> "Callable[[], Exchange]":
    from edge_client.exchange import InProcessExchange
    from edge_client.exchange.remote import GradientExchange

    if coordinator is None:
        return InProcessExchange
    return lambda: GradientExchange.connect(
        coordinator,
        session=session,
        device=device,
        run_steps=run_steps,
        reconnect_deadline_s=reconnect_deadline_s,
        tls=tls,
        require=require,
    )
