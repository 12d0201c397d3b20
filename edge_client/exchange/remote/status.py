"""How calls to the coordinator fail, and after which failures it is worth another try."""

import grpc
from edgenewton.common.tls import TlsFiles
from edgenewton.common.tls_diagnosis import diagnose

from edge_client.exchange.errors import Cause, ExchangeError

_CAUSES = {
    grpc.StatusCode.UNAVAILABLE: Cause.UNREACHABLE,
    grpc.StatusCode.CANCELLED: Cause.UNREACHABLE,
    grpc.StatusCode.INVALID_ARGUMENT: Cause.INVALID,
    grpc.StatusCode.DEADLINE_EXCEEDED: Cause.LEFT_OUT,
    grpc.StatusCode.ABORTED: Cause.ABORTED,
}

RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    # Its lease ended, or it read too slowly: it can take its place again.
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""A stream that ends so is opened again."""

RETRIED_FIRST_JOINS = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""The coordinator went down while it was asked; it has refused nothing."""

RETRIED_JOINS = RETRIED | {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS}
RETRIED_DOWNLOADS = RETRIED | {grpc.StatusCode.PERMISSION_DENIED}


class LostError(Exception):
    """The stream ended without a status of its own."""


class StreamEndedError(grpc.RpcError):
    """The coordinator ended the stream with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        """Return the status."""
        return self._code

    def details(self) -> str:
        """Return the coordinator's reason."""
        return self._details


def describe(error: Exception) -> str:
    """Return a failure in a line."""
    if isinstance(error, grpc.RpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)


def explain(error: grpc.RpcError, device: str, address: str, tls: TlsFiles | None) -> ExchangeError:
    """Return a failed call to the coordinator at `address` as a user's program meets it."""
    code, details = error.code(), str(error.details())
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        advice = diagnose(address, tls)
        details = f"device {device!r} lost the coordinator at {address} ({details})" + (f"; {advice}" if advice else "")
    return ExchangeError(details, _CAUSES.get(code, Cause.REFUSED))
