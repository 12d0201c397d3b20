"""Sketches of weights as messages."""

import numpy as np

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.sketch import MAX_GROUPS, MAX_NAME_LENGTH, PROJECTIONS, Sketch


def sketch_to_proto(sketch: Sketch) -> pb.Sketch:
    """Return the message."""
    rows = zip(
        sketch.names, sketch.projections.tolist(), sketch.scales.tolist(), sketch.roundoffs.tolist(), strict=True
    )
    return pb.Sketch(
        groups=[
            pb.GroupSketch(name=name, projections=projections, scale=scale, roundoff=roundoff)
            for name, projections, scale, roundoff in rows
        ]
    )


def sketch_from_proto(message: pb.Sketch) -> Sketch | None:
    """Return what a device sent; None if it sent none.

    Raises:
        ValueError: it is no sketch, or larger than one may be.

    """
    groups = message.groups
    if not groups:
        return None
    if len(groups) > MAX_GROUPS:
        raise ValueError(f"the sketch has {len(groups)} groups; at most {MAX_GROUPS} are accepted")
    for group in groups:
        if not 0 < len(group.name) <= MAX_NAME_LENGTH or not group.name.isprintable():
            raise ValueError(f"a group of the sketch has no name of 1 to {MAX_NAME_LENGTH} printable characters")
        if len(group.projections) != PROJECTIONS:
            raise ValueError(
                f"the sketch has {len(group.projections)} projections of {group.name!r}; it must be {PROJECTIONS}"
            )
        if group.scale < 0 or not 0 < group.roundoff < 1:
            raise ValueError(f"the sketch of {group.name!r} has an impossible scale or roundoff")
    return Sketch(
        tuple(group.name for group in groups),
        np.array([group.projections for group in groups], np.float64),
        np.array([group.scale for group in groups], np.float64),
        np.array([group.roundoff for group in groups], np.float64),
    )
