"""The operator's command `edge-coordinator`."""

import sys

from edgenewton.common.extras import MissingExtraError, needing


def main() -> None:
    """Run the command."""
    try:
        with needing("edge-coordinator", "coordinator"):
            from coordinator.cli.commands import app
    except MissingExtraError as error:
        sys.exit(f"error: {error}")
    app()
