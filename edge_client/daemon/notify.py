"""Tells systemd how the daemon is: sd_notify(3), a datagram to the socket that NOTIFY_SOCKET names."""

import contextlib
import os
import socket


def notify(*messages: str) -> bool:
    """Send messages such as "READY=1"; return False where systemd does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # Linux' abstract namespace
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.sendto("\n".join(messages).encode(), address)
        return True
    return False


def watchdog_interval_s() -> float | None:
    """Return how often systemd wants a sign of life: half the time after which it would end us; None for never."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdecimal() and int(microseconds) else None
