"""Options of `edge-coordinator` about certificates, and what they lead to."""

from pathlib import Path
from typing import Annotated

import typer
from edgenewton.common.console import fail
from edgenewton.common.tls import TlsError, TlsFiles
from pydantic import ValidationError

from coordinator.identity.audit import AuditLog
from coordinator.identity.gate import AccessGate
from coordinator.identity.limits import IdentityLimits
from coordinator.identity.server_tls import ServerTls, ServerTlsFiles

ServerTlsOption = Annotated[
    str | None,
    typer.Option(
        "--tls",
        metavar="FOLDER|CA,CERTIFICATE,KEY[,REVOKED]",
        help="Speak mutual TLS: the folder of `ca`, or that of this coordinator in it, or single files.",
    ),
]
TlsOption = Annotated[
    str | None,
    typer.Option(
        "--tls",
        metavar="FOLDER|CA,CERTIFICATE,KEY",
        envvar="EDGENEWTON_TLS",
        help="Certificate to show: the folder that `edge-coordinator ca issue` wrote, or three files.",
    ),
]
AllowOption = Annotated[
    list[str] | None, typer.Option("--allow", help="Device that sessions admit; all unless given; repeatable.")
]
AllowLabelOption = Annotated[
    list[str] | None, typer.Option("--allow-label", help="Label of devices that sessions admit, too; repeatable.")
]
AuditOption = Annotated[
    Path | None,
    typer.Option("--audit", help="File that gets a JSON line for each join, refusal, goodbye; it is rotated."),
]
MessageRateOption = Annotated[
    float, typer.Option("--max-messages-per-s", help="Messages a second of one identity, in the mean.")
]
StreamsOption = Annotated[int, typer.Option("--max-streams", help="Streams of one identity at once.")]
ConnectionsOption = Annotated[int, typer.Option("--max-connections", help="Connections of all devices together.")]
MessageBytesOption = Annotated[int, typer.Option("--max-message-bytes", help="Largest message that is taken.")]


def read_server_tls(text: str | None) -> ServerTls | None:
    """Return what `--tls` of a coordinator leads to, or end the command; None for plaintext."""
    if text is None:
        return None
    try:
        return ServerTls(ServerTlsFiles.parse(text))
    except TlsError as error:
        fail(f"--tls: {error}")


def read_tls(text: str | None) -> TlsFiles | None:
    """Return what `--tls` of a client leads to, or end the command; None for plaintext."""
    if text is None:
        return None
    try:
        files = TlsFiles.parse(text)
        files.read()
    except TlsError as error:
        fail(f"--tls: {error}")
    return files


def make_gate(
    tls: ServerTls | None, audit: Path | None, allow: list[str] | None, allow_labels: list[str] | None
) -> AccessGate:
    """Return who may do what, or end the command."""
    if tls is None and (allow or allow_labels):
        fail("--allow and --allow-label need --tls: in plaintext nobody can show who he is", code=2)
    try:
        return AccessGate(tls, AuditLog(audit), tuple(allow or ()), tuple(allow_labels or ()))
    except OSError as error:
        fail(f"--audit: {audit} cannot be written: {error.strerror or error}")


def make_limits(messages_per_s: float, streams: int, message_bytes: int, connections: int) -> IdentityLimits:
    """Return the limits of each identity, or end the command."""
    try:
        return IdentityLimits(
            messages_per_s=messages_per_s, streams=streams, message_bytes=message_bytes, connections=connections
        )
    except ValidationError as error:
        problem = error.errors()[0]
        fail(f"--max-{str(problem['loc'][0]).replace('_', '-')}: {problem['msg']}", code=2)
