"""Version 1 of the wire contract: messages, tensor codecs, model fingerprint and framing."""

PROTOCOL_VERSION = 1
"""Sent in every `JoinRequest`; both sides must have the same."""

TOKEN_METADATA_KEY = "edgenewton-token"
"""Metadata key that carries the secret of a membership on streams."""

MAX_MESSAGE_BYTES = 8 << 20
"""Largest gRPC message that either side accepts."""
