"""What a client may take of the gRPC server (grpc.github.io/grpc/core/group__grpc__arg__keys.html)."""

SERVER_OPTIONS = [
    ("grpc.http2.bdp_probe", 0),  # else what nobody has asked for comes in as fast as the link allows
    ("grpc.max_concurrent_streams", 128),  # of one connection; a client lets more wait
    ("grpc.max_metadata_size", 16 << 10),  # a request's headers, in bytes; beyond it they may be refused,
    ("grpc.absolute_max_metadata_size", 32 << 10),  # beyond this one they are
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Connections without calls end, and after an hour any: the client opens another, without losing a call.
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
    # A client that has vanished is found out; one that asks for signs of life too often is hung up on.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
]
