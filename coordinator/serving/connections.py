"""How many connections the gRPC server holds, and how long those that say nothing.

gRPC counts connections, but not by client, and no place is taken from anybody who holds one. So whoever does nothing
with a connection loses it soon, and the files that connections take are not those that the coordinator writes to.
"""

import logging
import resource

from coordinator.identity.limits import IdentityLimits
from coordinator.serving.intake import MAX_WAITING

log = logging.getLogger(__name__)

OTHER_FILES = 256
"""File descriptors that are not for connections of gRPC: the page has up to 128, the record and the logs some."""


def connection_options(limits: IdentityLimits) -> list[tuple[str, int]]:
    """Return the gRPC server's options (grpc.github.io/grpc/core/group__grpc__arg__keys.html)."""
    return [
        ("grpc.max_allowed_incoming_connections", most_connections(limits.connections)),
        ("grpc.server_handshake_timeout_ms", int(1e3 * limits.handshake_s)),
        ("grpc.max_connection_idle_ms", int(1e3 * limits.idle_s)),
        ("grpc.max_concurrent_streams", MAX_WAITING),
        ("grpc.max_metadata_size", 16 << 10),  # a call's headers, in bytes; beyond it they may be refused,
        ("grpc.absolute_max_metadata_size", 32 << 10),  # beyond this one they are
        # Who asks for signs of life too often is hung up on.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def most_connections(wanted: int) -> int:
    """Return how many connections there are file descriptors for, at most `wanted`; let the process have more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    most = max(soft - OTHER_FILES, soft // 2)
    log.warning(
        "the system allows this process %d open files (ulimit -n): it holds %d connections at most instead of %d",
        soft,
        most,
        wanted,
    )
    return most
