"""Parameters of requests that clients of Triton know: what this server cannot do is refused, and never ignored."""

from edge_client.inference.errors import BadRequestError

WAYS_OUT = {
    "shared_memory_region": "there is no shared memory; send the data",
    "shared_memory_byte_size": "there is no shared memory; send the data",
    "shared_memory_offset": "there is no shared memory; send the data",
}
"""What to do instead, for parameters that are known elsewhere."""


def unknown_parameter(name: str, known: tuple[str, ...]) -> BadRequestError:
    """Return the error of a parameter that is none here."""
    way_out = WAYS_OUT.get(name, f"known are {', '.join(map(repr, known))}" if known else "there are none here")
    return BadRequestError(f"parameter {name[:80]!r} is unknown: {way_out}")


def check_schedule(
    *, priority: int = 0, sequence_id: int | str = 0, sequence_start: bool = False, sequence_end: bool = False
) -> None:
    """Check what a request asks of its turn: first come, first served, and every request stands for itself.

    Raises:
        BadRequestError: it asks for more than that; 0, an empty text and False do not.

    """
    if priority:
        raise BadRequestError(
            f"parameter 'priority' is {priority}: requests are answered in the order in which they come; leave it out, "
            "and set 'timeout' for one that is worth nothing later"
        )
    if sequence_id or sequence_start or sequence_end:
        raise BadRequestError(
            f"parameter 'sequence_id' is {str(sequence_id)[:80]!r}: the models keep nothing from one request to the "
            "next; leave out 'sequence_id', 'sequence_start' and 'sequence_end'"
        )
