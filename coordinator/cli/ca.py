"""`edge-coordinator ca`: certificates for coordinators, devices and operators."""

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer
from edgenewton.common.command_line import CommandLine, Json
from edgenewton.common.console import fail, out, print_json
from edgenewton.common.identity import OPERATOR_LABEL, Kind
from edgenewton.common.tables import Column, Table

from coordinator.identity.authority import CA_KEY_FILE, DEFAULT_HOSTS, Authority, AuthorityError
from coordinator.identity.ledger import LedgerError

app = CommandLine("Issue and revoke the certificates of devices, operators and coordinators.", has_version=False)

Folder = Annotated[
    Path, typer.Option("--ca", help="Folder of the authority.", envvar="EDGENEWTON_CA", show_envvar=True)
]
Server = Annotated[bool, typer.Option("--server", help="It is a coordinator's.")]

DEFAULT_FOLDER = Path("ca")
_MAX_DAYS = 5 * 365


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder that the authority is kept in.")] = DEFAULT_FOLDER,
    years: Annotated[int, typer.Option(help="Years that the authority counts.", min=1, max=50)] = 10,
) -> None:
    """Make an authority: a private key that signs certificates, and its own certificate, which all sides trust."""
    try:
        Authority.create(folder, years)
    except (AuthorityError, LedgerError) as error:
        fail(str(error))
    option = "" if folder == DEFAULT_FOLDER else f" --ca {folder}"
    typer.echo(f"authority in {folder}; whoever has {folder / CA_KEY_FILE} can issue certificates: keep it to yourself")
    typer.echo(f"next: edge-coordinator ca issue{option} coordinator --server --host NAME_OR_ADDRESS")
    typer.echo(f"      edge-coordinator ca issue{option} DEVICE")


@app.command()
def issue(
    name: Annotated[str, typer.Argument(help="Id of the device; or name of the operator or coordinator.")],
    folder: Folder = DEFAULT_FOLDER,
    server: Server = False,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="With --server: name or address at which devices find it, beside those of loopback; repeatable."
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Label by which sessions can admit the device; {OPERATOR_LABEL!r} may open and end sessions; "
            "repeatable."
        ),
    ] = None,
    days: Annotated[int, typer.Option(help="Days that it counts.", min=1, max=_MAX_DAYS)] = 90,
    as_json: Json = False,
) -> None:
    """Issue a certificate with a new key, or renew it: the one before counts until it expires or is revoked."""
    if host and not server:
        fail("--host belongs to the certificates of coordinators: add --server", code=2)
    if label and server:
        fail("labels belong to devices and operators, not to coordinators", code=2)
    hosts = [*DEFAULT_HOSTS, *(other for other in host or [] if other not in DEFAULT_HOSTS)] if server else []
    try:
        lifetime = dt.timedelta(days=days)
        kind = Kind.COORDINATOR if server else Kind.DEVICE
        path = Authority(folder).issue(kind, name, lifetime, labels=label or [], hosts=hosts)
    except (AuthorityError, LedgerError) as error:
        fail(str(error))
    if as_json:
        print_json({"kind": kind.value, "name": name, "path": path, "days": days})
    else:
        typer.echo(f"issued {path}")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Id of the device, or name of the operator.")],
    folder: Folder = DEFAULT_FOLDER,
    keep_latest: Annotated[
        bool, typer.Option("--keep-latest", help="Leave the certificate that was issued last.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Revoke all certificates of a name. A coordinator that reads the list here ends their calls within a second."""
    try:
        entries = Authority(folder).revoke(Kind.DEVICE, name, keep_latest=keep_latest)
    except (AuthorityError, LedgerError) as error:
        fail(str(error))
    serials = [entry.serial for entry in entries]
    if as_json:
        print_json({"name": name, "serials": serials})
    else:
        typer.echo(f"revoked device {name}: {', '.join(serials)}")


@app.command(name="list")
def list_(folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """List what was issued."""
    try:
        entries = Authority(folder).entries()
    except (AuthorityError, LedgerError) as error:
        fail(str(error))
    now = dt.datetime.now(dt.UTC)
    if as_json:
        print_json(
            [
                {
                    "kind": entry.kind.value,
                    "name": entry.name,
                    "labels": entry.labels,
                    "expires": entry.not_after.isoformat(),
                    "state": entry.state(now),
                    "serial": entry.serial,
                }
                for entry in entries
            ]
        )
        return
    table = Table(
        Column("kind", rank=2),
        Column("name", is_name=True),
        Column("labels", rank=1),
        "expires (UTC)",
        "state",
        Column("serial", rank=3),
    )
    for entry in entries:
        state = entry.state(now)
        cells = entry.kind.value, entry.name, ", ".join(entry.labels), f"{entry.not_after:%Y-%m-%d %H:%M}", state
        table.add(*cells, entry.serial, style="" if state == "valid" else "dim")
    out.print(table)
