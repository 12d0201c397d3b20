"""`edge-client daemon`, and what is asked of it: `edge-client status` and `edge-client promote`."""

import asyncio
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from edgenewton.common.command_line import Json
from edgenewton.common.console import err, fail, out, print_json
from edgenewton.common.extras import needing
from edgenewton.common.tables import properties

from edge_client.daemon.environment import SOCKET_VARIABLE

if TYPE_CHECKING:
    from edgenewton.v1 import device_pb2 as pb

Config = Annotated[Path, typer.Option(help="The configuration, in TOML.")]
Socket = Annotated[
    Path | None, typer.Option(help=f"The daemon's socket; ${SOCKET_VARIABLE}, or the configuration's, unless given.")
]
DEFAULT_CONFIG = Path("/etc/edgenewton/daemon.toml")


def daemon(
    config: Config = DEFAULT_CONFIG,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Say whether the configuration is right, and end.")
    ] = False,
) -> None:
    """Run the daemon of this device: serve recognition, and train when Flower's ClientApp asks, until SIGTERM."""
    with needing("the daemon", "daemon"):
        from edge_client.daemon.config import ConfigError, load_config

    try:
        settings = load_config(config)
    except ConfigError as error:
        fail(str(error), code=2)
    if check_config:
        err.print(f"{config} is right; with the environment it says:")
        print_json(settings.model_dump(mode="json"))
        return
    with needing("the daemon", "daemon"):
        from edge_client.daemon.daemon import run_daemon
        from edge_client.daemon.logs import set_up_log
        from edge_client.inference.errors import ArtefactError
        from edge_client.inference.repository import RepositoryError
        from edge_client.inference.store import StoreError
        from edge_client.tasks.errors import TaskError

    set_up_log(settings.log)
    try:
        asyncio.run(run_daemon(settings))
    except (ArtefactError, RepositoryError, StoreError, TaskError, OSError) as error:
        fail(str(error))


def status(
    socket: Socket = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show what the daemon of this device does; exit with 1 if it does not answer."""
    with needing("to ask the daemon", "daemon"):
        from edge_client.daemon.client import DaemonClient, DaemonError

    try:
        with DaemonClient(_socket(socket, config)) as client:
            reply = client.status()
    except DaemonError as error:
        fail(str(error))
    if as_json:
        from google.protobuf.json_format import MessageToDict

        told = MessageToDict(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print_json(told)
    else:
        out.print(properties(_properties(reply)))


def promote(
    model: Annotated[Path, typer.Argument(help="A trained model (.pt).")],
    socket: Socket = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Let a model serve on the daemon of this device, without a pause."""
    with needing("to ask the daemon", "daemon"):
        from edge_client.daemon.client import DaemonClient, DaemonError

    try:
        content = model.read_bytes()
        with DaemonClient(_socket(socket, config)) as client:
            version = client.promote(content)
    except OSError as error:
        fail(f"{model} cannot be read: {error.strerror or error}")
    except DaemonError as error:
        fail(str(error))
    if as_json:
        print_json({"model": model, "version": version})
    else:
        out.print(f"{model} serves as version {version}")


def _socket(socket: Path | None, config: Path) -> Path:
    if socket is not None:
        return socket
    if os.environ.get(SOCKET_VARIABLE):
        return Path(os.environ[SOCKET_VARIABLE])
    with needing("the daemon", "daemon"):
        from edge_client.daemon.config import ConfigError, load_config

    try:
        return load_config(config).socket_path
    except ConfigError as error:
        fail(f"{error}. Name the daemon's socket with --socket, or its configuration with --config", code=2)


def _properties(reply: "pb.StatusReply") -> Iterator[tuple[str, str]]:
    model, training = reply.model, reply.training
    yield "daemon", f"process {reply.pid}, up {timedelta(seconds=int(reply.uptime_s))}, {reply.software}"
    yield "recognition", f"gRPC on {reply.grpc_address}, REST on {reply.rest_address}"
    if model.version:
        accuracy = f", accuracy {model.accuracy:.1%}" if model.HasField("accuracy") else ""
        yield (
            f"model {model.name!r}",
            f"version {model.version} of task {model.task!r}, {model.step} steps{accuracy}, {model.digest[:12]}",
        )
        yield "runs in", model.engine
        yield "kept", ", ".join(map(str, model.versions))
    else:
        yield f"model {model.name!r}", "none yet"
    spent = f", epsilon {training.epsilon:.3g}" if training.HasField("epsilon") else ""
    now = f"step {training.step} of session {training.session!r}, loss {training.loss:.4f}{spent}"
    yield "training", now if training.is_training else "idle"
    yield "last training", training.last
    yield "waiting samples", str(reply.waiting_samples)
