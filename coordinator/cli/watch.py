"""`edge-coordinator watch`: what happens in a session, in a terminal."""

from typing import Annotated

import grpc
import typer
from edgenewton.common.console import fail, out
from edgenewton.common.tls_diagnosis import diagnose
from rich.live import Live

from coordinator.cli.access import TlsOption, read_tls
from coordinator.telemetry.terminal import TerminalView
from coordinator.telemetry.watch import follow


def watch(
    address: Annotated[str, typer.Argument(help="Address of the coordinator, host:port.")] = "127.0.0.1:50051",
    session: Annotated[str, typer.Option(help="Session to watch; all of them unless given.")] = "",
    tls: TlsOption = None,
) -> None:
    """Show what happens in a session, as it happens, until it is over."""
    files = read_tls(tls)
    view = TerminalView()
    live = Live(view, console=out, refresh_per_second=8)
    try:
        for event in follow(address, session, files):
            view.apply(event)
            live.start()
    except grpc.RpcError as error:
        details = error.details() if isinstance(error, grpc.Call) else str(error)
        advice = diagnose(address, files)
        fail(f"cannot watch {address}: {advice or details}")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        live.stop()
