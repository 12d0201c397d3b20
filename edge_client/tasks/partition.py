"""Partitions: how labelled samples are spread over devices."""

import numpy as np
from numpy.typing import NDArray

from edge_client.tasks.task import Partition

Indices = NDArray[np.int64]

MINIMUM_SAMPLES = 2
"""Every device gets at least so many samples."""
_TRIES = 1_000


def iid(targets: Indices, count: int, seed: int) -> list[Indices]:
    """Return `count` disjoint parts of equal size (within one), drawn at random.

    Args:
        targets: class of each sample, `[n]`.
        count: number of devices.
        seed: of the draw.

    """
    order = np.random.default_rng(seed).permutation(len(targets))
    return [np.sort(part) for part in np.array_split(order, count)]


def dirichlet(targets: Indices, count: int, alpha: float, seed: int, minimum: int = MINIMUM_SAMPLES) -> list[Indices]:
    """Return `count` disjoint parts with label skew.

    Each class is spread over the devices in proportions drawn from a Dirichlet distribution (Hsu, Qi & Brown 2019,
    https://arxiv.org/abs/1909.06335, by class instead of by device, so that all samples are used).

    Args:
        targets: class of each sample, `[n]`.
        count: number of devices.
        alpha: concentration; small means that a device sees few classes.
        seed: of the draw.
        minimum: samples that every device gets at least; the draw is repeated until it does.

    Raises:
        ValueError: no draw gives every device its minimum.

    """
    rng = np.random.default_rng(seed)
    # Without enough samples no draw can succeed, and a thousand of them take long.
    tries = _TRIES if len(targets) >= count * minimum else 0
    for _ in range(tries):
        parts: list[list[Indices]] = [[] for _ in range(count)]
        for label in np.unique(targets):
            members = rng.permutation(np.flatnonzero(targets == label))
            ends = np.cumsum(rng.dirichlet(np.full(count, alpha)))[:-1] * len(members)
            for part, piece in zip(parts, np.split(members, ends.round().astype(int)), strict=True):
                part.append(piece)
        joined = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, joined)) >= minimum:
            return joined
    raise ValueError(
        f"{len(targets)} samples cannot be spread over {count} devices with alpha {alpha} so that each has at least "
        f"{minimum}; use a larger alpha or fewer devices"
    )


def natural(groups: Indices, count: int, seed: int) -> list[Indices]:
    """Return `count` disjoint parts, each from groups of its own: one speaker, accent or place per device.

    Fewer devices than groups get several groups each; of more devices some share a group, each with samples of its own.

    Args:
        groups: group of each sample, `[n]`.
        count: number of devices.
        seed: of the draw.

    Raises:
        ValueError: there are too few samples.

    """
    rng = np.random.default_rng(seed)
    names = rng.permutation(np.unique(groups))
    parts: list[list[Indices]] = [[] for _ in range(count)]
    for place, name in enumerate(names):
        members = rng.permutation(np.flatnonzero(groups == name))
        devices = range(place % count, count, len(names))
        for device, piece in zip(devices, np.array_split(members, len(devices)), strict=True):
            parts[device].append(piece)
    joined = [np.sort(np.concatenate(part)) for part in parts]
    if min(map(len, joined)) < MINIMUM_SAMPLES:
        raise ValueError(
            f"{len(groups)} samples in {len(names)} groups cannot be spread over {count} devices so that each has at "
            f"least {MINIMUM_SAMPLES}; use fewer devices"
        )
    return joined


def part(targets: Indices, partition: Partition, groups: Indices | None = None) -> Indices:
    """Return the positions of the samples that belong to a partition, ascending.

    Args:
        targets: class of each sample, `[n]`.
        partition: which device of how many, and how the samples are spread.
        groups: group of each sample, `[n]`, if they come from several speakers, places or the like.

    Raises:
        ValueError: the samples cannot be spread so.

    """
    if partition.kind == "iid":
        parts = iid(targets, partition.count, partition.seed)
    elif partition.kind == "natural":
        if groups is None:
            raise ValueError("the task's samples have no natural groups; use the partition iid or dirichlet")
        parts = natural(groups, partition.count, partition.seed)
    else:
        parts = dirichlet(targets, partition.count, partition.alpha, partition.seed)
    return parts[partition.index]
