"""How what devices tell each other is written: sets, step keys, announcements and shares as few bytes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from edgenewton.secure_aggregation.errors import SecureAggregationError
from edgenewton.secure_aggregation.fixed_point import Float32Array
from edgenewton.secure_aggregation.key_agreement import PUBLIC_LENGTH
from edgenewton.secure_aggregation.shamir import LENGTH as SHARE_LENGTH
from edgenewton.secure_aggregation.step_keys import BOX_LENGTH, HASH_LENGTH, Announcement, ShareDigests, StepKeys
from edgenewton.secure_aggregation.step_masks import Revealed
from edgenewton.v1 import exchange_pb2 as pb

_ANNOUNCEMENT_LENGTH = PUBLIC_LENGTH + HASH_LENGTH + BOX_LENGTH + 2 * HASH_LENGTH


def set_to_bytes(circle: Sequence[str], members: Collection[str]) -> bytes:
    """Return a set of devices of the circle as a bit for each."""
    return np.packbits([device in members for device in circle], bitorder="little").tobytes()


def set_from_bytes(circle: Sequence[str], data: bytes) -> list[str]:
    """Return the devices of a set, in the order of the circle.

    Raises:
        ValueError: it has not a bit for each device of the circle.

    """
    if len(data) != (len(circle) + 7) // 8:
        raise ValueError(f"a set of {len(circle)} devices came in {len(data)} bytes")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: len(circle)]
    return [device for device, bit in zip(circle, bits, strict=True) if bit]


def step_keys_to_proto(device: str, keys: StepKeys, attempt: int = 0) -> pb.StepKeys:
    """Return the message of a device's step keys, with the attempt for which they were wanted."""
    digests = (keys.digests[holder] for holder in sorted((device, *keys.boxes)))
    return pb.StepKeys(
        public=keys.public,
        seed_digest=keys.seed_digest,
        boxes=b"".join(keys.boxes[neighbour] for neighbour in sorted(keys.boxes)),
        digests=b"".join(digest.of_key + digest.of_seed for digest in digests),
        attempt=attempt,
    )


def step_keys_from_proto(device: str, neighbours: Collection[str], message: pb.StepKeys) -> StepKeys:
    """Return a device's step keys, checked.

    Raises:
        SecureAggregationError: they are not for just its neighbours, or something has a wrong length.

    """
    try:
        boxes = _parts(message.boxes, BOX_LENGTH, sorted(neighbours))
        digests = _parts(message.digests, 2 * HASH_LENGTH, sorted((device, *neighbours)))
    except ValueError as error:
        raise SecureAggregationError(device, f"sent step keys for other neighbours than its own: {error}") from None
    keys = StepKeys(
        message.public,
        message.seed_digest,
        boxes,
        {holder: ShareDigests(data[:HASH_LENGTH], data[HASH_LENGTH:]) for holder, data in digests.items()},
    )
    keys.check(device, neighbours)
    return keys


def announcements_to_bytes(announced: Mapping[str, Announcement]) -> bytes:
    """Return what a device needs of its neighbours, in the order of their names."""
    return b"".join(
        a.public + a.seed_digest + a.box + a.digests.of_key + a.digests.of_seed for _, a in sorted(announced.items())
    )


def announcements_from_bytes(neighbours: Iterable[str], data: bytes) -> dict[str, Announcement]:
    """Return what a device needs of the neighbours that mask.

    Raises:
        ValueError: it is not of just so many neighbours.

    """
    return {
        neighbour: Announcement(part[:32], part[32:48], part[48:128], ShareDigests(part[128:144], part[144:160]))
        for neighbour, part in _parts(data, _ANNOUNCEMENT_LENGTH, sorted(neighbours)).items()
    }


def revealed_to_proto(public: bytes, revealed: Revealed) -> pb.Revealed:
    """Return the message of what a device reveals; `public` tells for which of its keys."""
    return pb.Revealed(
        public=public,
        of_keys=b"".join(share for _, share in sorted(revealed.of_keys.items())),
        of_seeds=b"".join(share for _, share in sorted(revealed.of_seeds.items())),
    )


def revealed_from_proto(
    device: str, dropped: Collection[str], contributed: Collection[str], message: pb.Revealed
) -> Revealed:
    """Return what a device reveals of those devices of which it holds shares.

    Raises:
        SecureAggregationError: it is not of just these.

    """
    try:
        return Revealed(
            _parts(message.of_keys, SHARE_LENGTH, sorted(dropped)),
            _parts(message.of_seeds, SHARE_LENGTH, sorted(contributed)),
        )
    except ValueError as error:
        raise SecureAggregationError(device, f"did not reveal just the shares that are needed: {error}") from None


def scales_to_bytes(scales: Float32Array | None) -> bytes:
    """Return the scales of a slice's blocks in bf16, rounded up; nothing of a slice that has none."""
    if scales is None:
        return b""
    bits = np.ascontiguousarray(scales, "<f4").view("<u4")
    return ((bits + 0xFFFF) >> 16).astype("<u2").tobytes()


def scales_from_bytes(written: Sequence[bytes], blocks: Collection[int]) -> list[Float32Array]:
    """Return the scales of some slices' blocks (float32).

    Args:
        written: of each slice.
        blocks: of each slice, so many.

    Raises:
        ValueError: there are not so many, or one is negative or not finite.

    """
    for data, count in zip(written, blocks, strict=True):
        if len(data) != 2 * count:
            raise ValueError(f"{count} scales take {2 * count} bytes; {len(data)} came")
    scales = (np.frombuffer(b"".join(written), "<u2").astype(np.uint32) << 16).view(np.float32)
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise ValueError("a scale is negative, or not finite")
    ends = list(accumulate(blocks, initial=0))
    return [scales[begin:end] for begin, end in pairwise(ends)]


def _parts(data: bytes, length: int, names: Sequence[str]) -> dict[str, bytes]:
    if len(data) != length * len(names):
        raise ValueError(f"{len(names)} parts of {length} bytes were expected; {len(data)} bytes came")
    return {name: data[length * place : length * (place + 1)] for place, name in enumerate(names)}
