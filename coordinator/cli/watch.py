"""`edge-coordinator watch`: what happens in a session, in a terminal."""

import time
from collections.abc import Iterable
from typing import Annotated

import grpc
import typer
from edgenewton.common.command_line import Json
from edgenewton.common.console import fail, out, print_json
from edgenewton.common.tls_diagnosis import diagnose
from edgenewton.v1 import exchange_pb2 as pb
from rich.live import Live

from coordinator.cli.access import TlsOption, read_tls
from coordinator.telemetry.terminal import TerminalView
from coordinator.telemetry.watch import follow

LINE_EVERY_S = 30.0
"""Seconds between two lines, where there is no terminal."""
JSON_EVERY_S = 1.0
"""Seconds between two lines of JSON."""


def watch(
    address: Annotated[str, typer.Argument(help="Address of the coordinator, host:port.")] = "127.0.0.1:50051",
    session: Annotated[str, typer.Option(help="Session to watch; all of them unless given.")] = "",
    tls: TlsOption = None,
    as_json: Json = False,
) -> None:
    """Show what happens in a session, as it happens, until it is over.

    Where there is no terminal it prints a line now and then, and the table at the end. With --json it prints an object
    a second, one a line, and the last one at the end.
    """
    files = read_tls(tls)
    events = follow(address, session, files)
    try:
        if as_json:
            _print_json(events)
        else:
            _show(events)
    except grpc.RpcError as error:
        details = error.details() if isinstance(error, grpc.Call) else str(error)
        advice = diagnose(address, files)
        fail(f"cannot watch {address}: {advice or details}")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _show(events: Iterable[pb.SessionEvent]) -> None:
    view, told_at = TerminalView(), time.monotonic()
    live = Live(view, console=out, refresh_per_second=8)
    try:
        for event in events:
            view.apply(event)
            if out.is_terminal:
                live.start()
            elif time.monotonic() >= told_at + LINE_EVERY_S:
                told_at = time.monotonic()
                out.print(view.line())
    finally:
        live.stop()
        if not out.is_terminal and view.session:
            out.print(view)


def _print_json(events: Iterable[pb.SessionEvent]) -> None:
    view, told_at, is_told = TerminalView(), 0.0, True
    try:
        for event in events:
            view.apply(event)
            is_told = time.monotonic() >= told_at + JSON_EVERY_S
            if is_told:
                told_at = time.monotonic()
                print_json(view.figures(), is_line=True)
    finally:
        if not is_told:
            print_json(view.figures(), is_line=True)
