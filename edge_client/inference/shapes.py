"""Shapes, as messages tell them."""

from collections.abc import Sequence


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as people read it, "1 x 8 x 8"."""
    return " x ".join(map(str, shape)) or "a scalar"
