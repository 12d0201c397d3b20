"""Why a request was not answered, as the servers translate it into their status codes."""

from edge_client.tasks.errors import SampleError


class ArtefactError(ValueError):
    """A model file cannot be used; the text names the file and says why."""


class NotFiniteError(SampleError):
    """A sample that is whole makes the model's numbers overflow, so that there is no label for it."""


class RequestError(Exception):
    """A request was not answered; the text says why, and what to do."""


class BadRequestError(RequestError):
    """The request itself is wrong: its form, its shapes, its samples."""


class UnknownModelError(RequestError):
    """There is no such model, or no such version of it."""


class NotAllowedError(RequestError):
    """The operator does not let clients do this."""


class TooLargeError(RequestError):
    """The request has more bytes or samples than one may have."""


class OverloadedError(RequestError):
    """Too many requests wait; it may be sent again later."""


class DeadlineError(RequestError):
    """The request's time was over before it was answered."""


class UnavailableError(RequestError):
    """Nothing can be answered now: there is no model yet, or the server stops."""
