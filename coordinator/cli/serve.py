"""`edge-coordinator serve`: one session, or those that runs open, on one address, until it is stopped."""

import asyncio
import contextlib
import logging
import signal
from pathlib import Path
from typing import Annotated, Protocol, get_args

import typer
from edgenewton.common.addresses import is_loopback
from edgenewton.common.command_line import Json
from edgenewton.common.console import err, fail, print_json, warn
from edgenewton.v1.codecs import CODEC_NUMBERS
from pydantic import ValidationError

from coordinator.cli.access import (
    AllowLabelOption,
    AllowOption,
    AuditOption,
    ConnectionsOption,
    MessageBytesOption,
    MessageRateOption,
    ServerTlsOption,
    StreamsOption,
    make_gate,
    make_limits,
    read_server_tls,
)
from coordinator.dashboard.server import DashboardServer
from coordinator.identity.gate import AccessGate
from coordinator.identity.limits import IdentityLimits
from coordinator.serving.server import CoordinatorServer
from coordinator.session.decisions import Phase
from coordinator.session.session import Session
from coordinator.session.settings import AggregatorName, SessionSettings
from coordinator.telemetry.record import Record, RecordError, SessionRecord
from coordinator.telemetry.tensorboard import TensorBoardError, TensorBoardWriter

_LIMITS = IdentityLimits()
_SETTINGS = SessionSettings()


def serve(
    session: Annotated[str, typer.Option(help="Name of the session that devices join.")] = "default",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65_535)] = 50_051,
    devices: Annotated[
        int, typer.Option(help="The session begins when so many devices have joined.")
    ] = _SETTINGS.devices,
    quorum: Annotated[
        int | None,
        typer.Option(help="So many begin at the deadline to join, and go on when others are lost; all unless given."),
    ] = None,
    max_devices: Annotated[
        int | None, typer.Option(help="So many may take part, those that join later included; --devices unless given.")
    ] = None,
    codec: Annotated[
        str, typer.Option(help=f"How gradients are written on the wire: {', '.join(CODEC_NUMBERS)}.")
    ] = _SETTINGS.codec,
    powersgd_rank: Annotated[int, typer.Option(help="Rank of the powersgd codec.")] = _SETTINGS.powersgd_rank,
    topk_fraction: Annotated[
        float, typer.Option(help="Part of the elements that topk, sparse4, sparse2 and sparse1 keep.")
    ] = _SETTINGS.topk_fraction,
    aggregator: Annotated[
        str,
        typer.Option(
            help=f"What contributions become: {', '.join(get_args(AggregatorName))}; history bears bad devices."
        ),
    ] = _SETTINGS.aggregator,
    bad_devices: Annotated[
        int | None, typer.Option(help="So many bad devices it must bear; a quarter of them unless given.")
    ] = None,
    max_samples: Annotated[
        int | None,
        typer.Option(help="A device counts with so many samples at most; 16 times the devices' median unless given."),
    ] = None,
    secure_aggregation: Annotated[
        bool,
        typer.Option("--secure-aggregation", help="The devices mask what they send: the coordinator learns sums only."),
    ] = False,
    mask_bits: Annotated[
        int, typer.Option(help="Bits of a device's moves under masks, 8 or 4; sums of gradients take twice as many.")
    ] = _SETTINGS.mask_bits,
    frame_bytes: Annotated[
        int, typer.Option(help="A frame leaves when its data reaches this size.")
    ] = _SETTINGS.frame_bytes,
    step_deadline_s: Annotated[float, typer.Option(help="Seconds that a step may take.")] = _SETTINGS.step_deadline_s,
    join_deadline_s: Annotated[
        float, typer.Option(help="Seconds for all devices to join, from the first.")
    ] = _SETTINGS.join_deadline_s,
    rejoin_deadline_s: Annotated[
        float, typer.Option(help="Seconds to wait for devices to come back once the quorum is lost; 0 aborts at once.")
    ] = _SETTINGS.rejoin_deadline_s,
    replay_bytes: Annotated[
        int, typer.Option(help="Bytes of past steps that are kept for devices that come back.", min=0)
    ] = _SETTINGS.replay_bytes,
    heartbeat_s: Annotated[
        float, typer.Option(help="Seconds between two signs of life of an idle device.")
    ] = _SETTINGS.heartbeat_s,
    lease_s: Annotated[
        float, typer.Option(help="Seconds of silence after which a device loses its place.")
    ] = _SETTINGS.lease_s,
    digest_every: Annotated[
        int, typer.Option(help="Steps between two comparisons of the devices' weights.")
    ] = _SETTINGS.digest_every,
    on_demand: Annotated[
        bool,
        typer.Option(
            "--on-demand",
            help="Begin without a session: Flower runs open theirs, with settings of their own.",
        ),
    ] = False,
    record: Annotated[
        Path | None, typer.Option(help="File that records the session, so that it outlives this process.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what --record has; the session's own settings count then.")
    ] = False,
    trust_state_of: Annotated[
        list[str] | None,
        typer.Option(
            help="Device whose state may be of a later step than the session knows: all take it over; repeatable."
        ),
    ] = None,
    model_of: Annotated[
        str | None,
        typer.Option(help="Device whose model and options are the session's; others wait for it. Else most decide."),
    ] = None,
    model_fingerprint: Annotated[
        str | None,
        typer.Option(help="Fingerprint that the model and options must have, as the log and the page show it."),
    ] = None,
    tls: ServerTlsOption = None,
    allow: AllowOption = None,
    allow_label: AllowLabelOption = None,
    audit: AuditOption = None,
    max_messages_per_s: MessageRateOption = _LIMITS.messages_per_s,
    max_streams: StreamsOption = _LIMITS.streams,
    max_message_bytes: MessageBytesOption = _LIMITS.message_bytes,
    max_connections: ConnectionsOption = _LIMITS.connections,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow plaintext on an address that is not loopback.")
    ] = False,
    page_port: Annotated[
        int | None,
        typer.Option(
            help="Port of the live page and metrics; 0 takes a free one; none unless given.", min=0, max=65_535
        ),
    ] = None,
    page_host: Annotated[str, typer.Option(help="Address that they listen on.")] = "127.0.0.1",
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder that gets TensorBoard event files; needs the extra 'tensorboard'.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Exit when the session is over.")] = False,
    as_json: Json = False,
) -> None:
    """Serve one session: print where, then synchronise until it is stopped with Ctrl-C or SIGTERM.

    With --on-demand it serves the sessions that Flower runs open, which name it: flwr run -c 'coordinator="host:port"'.
    With --record a session survives its coordinator: stop or kill it, start it with --resume, and the devices go on.
    """
    if resume and record is None:
        fail("--resume needs --record, the file to go on from", code=2)
    beginning = {
        "trust_state_of": tuple(trust_state_of or ()),
        "model_of": model_of or "",
        "model_fingerprint": model_fingerprint or "",
    }
    if on_demand and not resume and any(beginning.values()):
        option = next("--" + name.replace("_", "-") for name, value in beginning.items() if value)
        fail(f"{option} is for the session that this command opens, and --on-demand begins without one", code=2)
    if once and on_demand:
        fail("--once ends with the session, and --on-demand begins without one: give one of them", code=2)
    try:
        settings = SessionSettings.model_validate(
            {
                "devices": devices,
                "quorum": quorum,
                "max_devices": max_devices,
                "codec": codec,
                "powersgd_rank": powersgd_rank,
                "topk_fraction": topk_fraction,
                "aggregator": aggregator,
                "bad_devices": bad_devices,
                "max_samples": max_samples,
                "secure_aggregation": secure_aggregation,
                "mask_bits": mask_bits,
                "frame_bytes": frame_bytes,
                "step_deadline_s": step_deadline_s,
                "join_deadline_s": join_deadline_s,
                "rejoin_deadline_s": rejoin_deadline_s,
                "replay_bytes": replay_bytes,
                "heartbeat_s": heartbeat_s,
                "lease_s": lease_s,
                "digest_every": digest_every,
                "allow": allow or (),
                "allow_labels": allow_label or (),
                **beginning,
            }
        )
    except ValidationError as error:
        for problem in error.errors():
            option = "--" + "-".join(str(part) for part in problem["loc"]).replace("_", "-")
            fail(f"{option if problem['loc'] else 'settings'}: {problem['msg']}", code=2)
    if page_host != "127.0.0.1" and page_port is None:
        fail("--page-host needs --page-port, the port of the page", code=2)
    limits = make_limits(max_messages_per_s, max_streams, max_message_bytes, max_connections)
    if max_message_bytes < 2 * frame_bytes:
        fail(f"--max-message-bytes must be at least twice --frame-bytes, {2 * frame_bytes}", code=2)
    secured = read_server_tls(tls)
    gate = make_gate(secured, audit, allow, allow_label)
    if secured is None:
        for address in {host, page_host}:
            _check_exposure(address, insecure=insecure)
    elif insecure:
        fail("--insecure is for plaintext, and --tls ends that: give one of them", code=2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        book = Record(record) if record is not None else None
        resumed = book.resumable() if book is not None and resume else []
    except RecordError as error:
        fail(str(error))
    if resume and not resumed and not on_demand:
        err.print(f"{record} has no session to go on with; beginning a new one")
    page = (page_host, page_port) if page_port is not None else None
    name = None if on_demand else session
    serving = _serve(
        (host, port),
        name,
        settings,
        gate=gate,
        limits=limits,
        page=page,
        tensorboard=tensorboard,
        once=once,
        as_json=as_json,
        record=book,
        resumed=[known.told(**{name: value for name, value in beginning.items() if value}) for known in resumed],
    )
    phase = asyncio.run(serving)
    raise typer.Exit(1 if phase is Phase.ABORTED and once else 0)


class Companion(Protocol):
    """What runs beside the exchange, on its event loop."""

    async def start(self) -> None:
        """Begin."""

    async def stop(self) -> None:
        """End, after the sessions."""


async def _serve(
    address: tuple[str, int],
    name: str | None,
    settings: SessionSettings,
    *,
    gate: AccessGate,
    limits: IdentityLimits,
    page: tuple[str, int] | None,
    tensorboard: Path | None,
    once: bool,
    as_json: bool,
    record: Record | None,
    resumed: list[SessionRecord],
) -> Phase | None:
    """Serve until a signal comes, or until the session is over; return its phase."""
    server = CoordinatorServer(*address, record, is_controlled=True, gate=gate, limits=limits)
    session: Session | None = None
    companions: list[Companion] = []
    try:
        # Before it listens: a device that comes back finds its session.
        for known in resumed:
            session = server.directory.resume(known)
        if not resumed and name is not None:
            session = server.directory.create(name, settings)
        if tensorboard is not None:
            companions.append(TensorBoardWriter(server.directory.events, tensorboard))
        if page is not None:
            companions.append(
                DashboardServer(server.directory, *page, tls=gate.tls.page_context() if gate.tls else None)
            )
        for companion in companions:
            await companion.start()
        await server.start()
    except (OSError, ValueError, RecordError, TensorBoardError) as error:
        fail(str(error))
    urls = [f"{companion.url}/" for companion in companions if isinstance(companion, DashboardServer)]
    if as_json:
        at = None if session is None else session.step.number
        told = {"address": server.address, "page": urls[0] if urls else None, "session": name, "step": at}
        print_json(told, is_line=True)
    else:
        for url in urls:
            typer.echo(f"page and metrics are at {url}")
        typer.echo(f"coordinator listens on {server.address}; {_plan(session, is_resumed=bool(resumed))}")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    while not stop.is_set() and not (once and session is not None and session.is_over):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.1)
    await server.stop("the coordinator was stopped", suspend=record is not None)
    for companion in companions:
        await companion.stop()
    if record is not None:
        record.close()
    return session.phase if session is not None else None


def _plan(session: Session | None, *, is_resumed: bool) -> str:
    if session is None:
        return "runs open their sessions"
    waits = f"resumes at step {session.step.number}" if is_resumed else f"waits for {session.settings.devices} devices"
    return f"session {session.name!r} {waits}"


def _check_exposure(host: str, *, insecure: bool) -> None:
    if is_loopback(host):
        return
    if not insecure:
        fail(
            f"{host} can be reached from other machines, and the link is plaintext: give it certificates with --tls, "
            "or add --insecure",
            code=2,
        )
    danger = "anybody who reaches this port can join, read and open sessions; certificates (--tls) end that."
    warn(f"plaintext on {host}: {danger}")
