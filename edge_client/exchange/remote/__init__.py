"""The exchange over gRPC, through a coordinator."""

from edgenewton.common.tls import TlsFiles

from edge_client.exchange.remote.connector import GradientExchange

__all__ = ["GradientExchange", "TlsFiles"]
