"""Finds out why a TLS connection does not come about, with a handshake of Python's own.

All that gRPC says of a failed handshake is that the socket was closed.
"""

import contextlib
import socket
import ssl
from collections.abc import Iterator

from edgenewton.common.tls import TlsError, TlsFiles

_NOT_TAKEN = (
    "it does not take this side's certificate: it trusts another authority, or its clock is wrong; its log has more"
)
_HOSTNAME_MISMATCH = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL's x509_vfy.h."""
_EXPIRED, _NOT_YET_VALID = 10, 9


def diagnose(address: str, tls: TlsFiles | None, timeout_s: float = 2.0) -> str:
    """Try a handshake with a coordinator, and return what is wrong with it.

    Args:
        address: of the coordinator, host:port.
        tls: this side's files; None if it speaks plaintext.
        timeout_s: seconds for the connection and for each answer.

    Returns:
        A sentence that tells what is wrong and what to do; an empty text if nobody answers, or nothing is wrong.

    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), timeout_s) as connection:
            return _diagnose_plaintext(connection) if tls is None else _diagnose_tls(connection, host, address, tls)
    except (OSError, ValueError):
        return ""


def _diagnose_plaintext(connection: socket.socket) -> str:
    """Return whether a server wants TLS: then it answers a TLS greeting, if only with a refusal."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent on it
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection):
            pass
    except ssl.SSLError:
        return ""
    return "it speaks TLS, and this side plaintext: name this side's certificates (`tls`)"


def _diagnose_tls(connection: socket.socket, host: str, address: str, tls: TlsFiles) -> str:
    try:
        with _handshake(connection, host, tls) as secured:
            return _diagnose_answer(secured)
    except TlsError as error:
        return str(error)
    except ssl.SSLCertVerificationError as error:
        return _explain_verification(error, address, tls)
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
            return "it speaks plaintext, and this side TLS: give it certificates (`serve --tls`) too"
        return f"the TLS handshake fails: {error.reason or error}"


def _diagnose_answer(secured: ssl.SSLSocket) -> str:
    """Return whether the server takes the certificate: in TLS 1.3 it looks at it after the client's own handshake."""
    try:
        # HTTP/2 servers speak first.
        return "" if secured.recv(1) else _NOT_TAKEN
    except TimeoutError:
        return ""
    except OSError:  # an alert, or a connection that is reset
        return _NOT_TAKEN


@contextlib.contextmanager
def _handshake(connection: socket.socket, host: str, tls: TlsFiles) -> Iterator[ssl.SSLSocket]:
    tls.read()  # with sentences that OpenSSL does not have
    context = ssl.create_default_context(cafile=tls.ca)
    context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(connection, server_hostname=host) as secured:
        yield secured


def _explain_verification(error: ssl.SSLCertVerificationError, address: str, tls: TlsFiles) -> str:
    if error.verify_code in _HOSTNAME_MISMATCH:
        return (
            f"its certificate is for other names than that in {address!r}: use one of those, or issue it for this one "
            "too (`edge-coordinator ca issue NAME --server --host HOST`)"
        )
    if error.verify_code == _EXPIRED:
        return "its certificate has expired; renew it there with `edge-coordinator ca issue NAME --server`"
    if error.verify_code == _NOT_YET_VALID:
        return "its certificate is not valid yet; is this machine's clock right?"
    return f"its certificate is not of the authority in {tls.ca} ({error.verify_message})"
