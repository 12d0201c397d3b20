"""What is not installed: which extra of the distribution brings it, in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

_OURS = ("edge_client", "coordinator", "edgenewton")


class MissingExtraError(ImportError):
    """Something needs a package that is not installed; the text says what, and which extra brings it."""


@contextmanager
def needing(what: str, extra: str) -> Iterator[None]:
    """Say of a package that is missing for the imports inside how to get it.

    Args:
        what: needs them, such as "a daemon"; the beginning of the sentence.
        extra: of `edgenewton`, brings them.

    Raises:
        MissingExtraError: one of them is not installed.

    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _OURS:  # a fault of ours, no choice of whoever installed it
            raise
        raise MissingExtraError(
            f"{what} needs the package {package!r}, which is not installed: pip install 'edgenewton[{extra}]'",
            name=error.name,
        ) from None
