"""Bodies of REST requests and answers: read within their limits, and compressed if the client wants that."""

from fastapi import Request, Response

from edge_client.inference import errors
from edge_client.inference.server.compression import WORTH_BYTES, accepted_coding, coding_of, pack, unpack
from edge_client.inference.server.memory import RequestMemory
from edge_client.inference.server.service import InferenceService

_MOST_DIGITS = 18
"""Of a length; Python itself refuses to read thousands."""
_UNPACKED = 64
"""A packed body may take so many times as long as a plain one; it goes to a thread sooner."""


def client_of(request: Request) -> str:
    """Return the address that a request comes from; empty in tests without a network."""
    return request.client.host if request.client is not None else ""


async def read_body(request: Request, service: InferenceService, memory: RequestMemory, limit: int = 0) -> bytes:
    """Return a request's body, unpacked.

    Args:
        request: whose.
        service: that it is for.
        memory: counts what it takes.
        limit: bytes at most, as it comes and unpacked; 0 for the service's.

    Raises:
        TooLargeError: it is larger than the limit; no more than that is read, or unpacked.
        OverloadedError: other requests take too much memory.
        BadRequestError: its coding is unknown, or it is not in it.

    """
    limit = limit or service.limits.max_request_bytes
    coding = coding_of(request.headers.get("Content-Encoding", ""))
    length = request.headers.get("Content-Length", "0")
    if not length.isdecimal() or len(length) > _MOST_DIGITS or int(length) > limit:
        raise errors.TooLargeError(f"the body has {length[:40]} bytes; {limit} are the limit")
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise errors.TooLargeError(f"the body has more than {limit} bytes, which are the limit")
        memory.take(2 * len(chunk), "the request's body")  # as it comes, and as a whole
        body += chunk
    content = bytes(body)
    if not coding:
        return content

    def take(size: int) -> None:
        memory.take(size, "the request's unpacked body")

    return await service.aside(_UNPACKED * len(content), lambda: unpack(content, coding, limit, take))


async def answer_of(
    request: Request, service: InferenceService, content: bytes, media_type: str, headers: dict[str, str]
) -> Response:
    """Return an answer, packed if the client takes that and it is worth the while.

    Args:
        request: is answered.
        service: that answers.
        content: of the answer.
        media_type: of the content.
        headers: of the answer; one of a packed one is added.

    """
    if len(content) >= WORTH_BYTES and (coding := accepted_coding(request.headers.get("Accept-Encoding", ""))):
        content = await service.aside(len(content), lambda: pack(content, coding))
        headers = {**headers, "Content-Encoding": coding, "Vary": "Accept-Encoding"}
    return Response(content, headers=headers, media_type=media_type)
