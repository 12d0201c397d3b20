"""Version 1 of the wire contract: messages, tensor codecs, model fingerprint and framing."""

PROTOCOL_VERSION = 1
"""Sent in every `JoinRequest`; both sides must have the same."""

TOKEN_METADATA_KEY = "edgenewton-token"
"""Metadata key that carries the secret of a membership on streams."""

MAX_MESSAGE_BYTES = 8 << 20
"""Largest gRPC message that either side accepts."""

TRANSPORT_OPTIONS = [
    # HTTP/2 frames and reads as large as our frames: measured, they halve the time of 40 MB.
    ("grpc.http2.max_frame_size", 4 << 20),
    ("grpc.http2.lookahead_bytes", 8 << 20),
    ("grpc.experimental.tcp_read_chunk_size", 1 << 20),
    ("grpc.experimental.tcp_min_read_chunk_size", 256 << 10),
    ("grpc.experimental.tcp_max_read_chunk_size", 4 << 20),
]
"""gRPC channel arguments of both sides."""
