"""The release of this software."""

from importlib import metadata


def version() -> str:
    """Return the number of the installed release; "unknown" where it was not installed, but put on Python's path."""
    try:
        return metadata.version("edgenewton")
    except metadata.PackageNotFoundError:
        return "unknown"
