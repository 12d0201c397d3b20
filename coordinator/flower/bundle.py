"""Finds a FLWR_HOME that was bundled with a Flower app, because it lies inside the app's folder."""

import sys
from collections.abc import Sequence
from pathlib import Path

from flwr.supercore.utils import get_flwr_home

_CONFIG = "config.toml"
_MARK = "[superlink"
"""Begins the tables of Flower's configuration."""


def bundled_homes(search_path: Sequence[str] = sys.path) -> list[Path]:
    """Return the FLWR_HOMEs inside the app that runs, relative to it.

    Args:
        search_path: where Python looks for modules; Flower puts the folder of the app that runs among it.

    """
    installed = (get_flwr_home() / "apps").resolve()
    apps = {path for path in map(Path, search_path) if path.resolve().parent == installed}
    return sorted(
        config.parent.relative_to(app)
        for app in apps
        for config in app.rglob(_CONFIG)
        if _MARK in config.read_text(encoding="utf-8", errors="replace")
    )
