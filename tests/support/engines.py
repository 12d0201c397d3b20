"""The engines as parameters of tests; one whose extra is not installed is skipped."""

import importlib.util

import pytest

from edge_client.inference.engine import ENGINES

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="the extra edgenewton[executorch] is not installed"
)
EVERY_ENGINE = [pytest.param(name, marks=[needs_executorch] if name == "executorch" else []) for name in ENGINES]
