"""Follows sessions through the coordinator's `Watch` stream."""

from collections.abc import Iterator

from edgenewton.common.tls import TlsFiles, open_channel
from edgenewton.v1 import MAX_MESSAGE_BYTES, exchange_pb2_grpc
from edgenewton.v1 import exchange_pb2 as pb


def follow(address: str, session: str = "", tls: TlsFiles | None = None) -> Iterator[pb.SessionEvent]:
    """Yield the events of one session, or of all sessions of a coordinator, from their beginning.

    Args:
        address: of the coordinator, host:port.
        session: its name; empty for all sessions.
        tls: certificate to show; None for plaintext.

    Raises:
        grpc.RpcError: the coordinator does not answer, refuses, or knows no such session.
        TlsError: the certificate cannot be used.

    """
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    with open_channel(address, tls, options) as channel:
        yield from exchange_pb2_grpc.GradientExchangeStub(channel).Watch(pb.WatchRequest(session=session))
