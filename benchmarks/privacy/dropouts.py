"""Which part of the drop-outs a masked step survives, and how long keys take, on the protocol alone, without a network.

Of each number of devices, each number up to a third drops out, divided in every way over the points of a step: before
their keys, after these, and after their contribution. A step survives if its sum is exactly that of the contributions.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from edgenewton.secure_aggregation.fixed_point import FixedPoint
from edgenewton.secure_aggregation.key_agreement import public_key
from edgenewton.secure_aggregation.shamir import random_secret
from edgenewton.secure_aggregation.step_keys import channel_secret
from edgenewton.secure_aggregation.step_masks import StepMasks

from coordinator.session.masked_round import MaskedRound

SIZES = (3, 4, 5, 6, 7, 8, 9, 12)
MANY = 100
_LENGTH = 32


@dataclass(frozen=True)
class Survival:
    """How many drop-outs were tried, and how many steps were right all the same."""

    tried: int
    survived: int


@dataclass(frozen=True)
class KeySeconds:
    """What keys of many devices take, in processor seconds."""

    session_device_s: float
    """Of one device, once: what it has in common with each other device for the session."""
    step_device_s: float
    """Of one device, in each step: its keys, their shares, what it takes of the others, and what it reveals."""
    step_coordinator_s: float
    """Of the coordinator, in each step: what it passes on, and the secrets that it puts together."""


def drop_outs(devices: int) -> Iterator[tuple[int, int, int]]:
    """Yield how many drop out before their keys, after them, and after their contribution."""
    most = devices // 3
    for before in range(most + 1):
        for after_keys in range(most + 1 - before):
            for after_values in range(most + 1 - before - after_keys):
                if before + after_keys + after_values:
                    yield before, after_keys, after_values


def survival(sizes: tuple[int, ...] = SIZES) -> Survival:
    """Return how many of all drop-outs of fleets of these sizes are survived."""
    outcomes = [
        survives(MaskedFleet(size), *gone, step=step) for size in sizes for step, gone in enumerate(drop_outs(size))
    ]
    return Survival(len(outcomes), sum(outcomes))


class MaskedFleet:
    """Devices with keys for a session."""

    def __init__(self, devices: int) -> None:
        self.names = [f"d{index:03}" for index in range(devices)]
        self._private = {name: random_secret() for name in self.names}
        public = {name: public_key(private) for name, private in self._private.items()}
        began = time.process_time()
        self.secrets = {name: self._secrets_of(name, public) for name in self.names}
        self.session_device_s = (time.process_time() - began) / devices

    def _secrets_of(self, name: str, public: dict[str, bytes]) -> dict[str, bytes]:
        return {
            other: channel_secret(self._private[name], name, other, key)
            for other, key in public.items()
            if other != name
        }


def survives(fleet: MaskedFleet, before: int, after_keys: int, after_values: int, step: int = 0) -> bool:
    """Tell whether a step's sum is right though devices drop out of it."""
    names = fleet.names
    least = len(names) - len(names) // 3
    order = np.random.default_rng(step).permutation(names).tolist()
    announce = order[before:]
    contribute = announce[after_keys:]
    reveal = contribute[after_values:]
    of = MaskedRound("survival", step, names)
    masks = {name: StepMasks("survival", step, name, fleet.secrets[name], least) for name in announce}
    for name, own in masks.items():
        of.take_keys(name, own.keys)
    of.close_keys()
    for name, own in masks.items():
        own.take(of.maskers, of.announcements_for(name))
    form = FixedPoint(8, len(announce), np.ones(1, np.float32))
    values = {name: np.random.default_rng(i).uniform(-1, 1, _LENGTH) for i, name in enumerate(contribute)}
    sent = {name: form.encode(own) for name, own in values.items()}
    masked = [masks[name].mask(0, each.integers, form.sum_bits) for name, each in sent.items()]
    of.ask(contribute)
    for name in reveal:
        of.take_revealed(name, masks[name].reveal(contribute))
    if not of.is_unmasked:
        return False
    expected = np.sum([each.written.astype(np.float64) for each in sent.values()], axis=0)
    return bool(np.allclose(of.sum_of(0, masked, form), expected, rtol=0, atol=1e-5))


def key_seconds(devices: int = MANY) -> KeySeconds:
    """Return what keys take if so many devices mask, none of which drops out."""
    fleet = MaskedFleet(devices)
    names = fleet.names
    of = MaskedRound("keys", 0, names)
    device_s = coordinator_s = 0.0
    began = time.process_time()
    masks = {name: StepMasks("keys", 0, name, fleet.secrets[name], of.needed) for name in names}
    device_s += time.process_time() - began
    began = time.process_time()
    for name in names:
        of.take_keys(name, masks[name].keys)
    of.close_keys()
    announced = {name: of.announcements_for(name) for name in names}
    coordinator_s += time.process_time() - began
    began = time.process_time()
    for name in names:
        masks[name].take(of.maskers, announced[name])
    revealed = {name: masks[name].reveal(names) for name in names}
    device_s += time.process_time() - began
    form = FixedPoint(8, devices, np.ones(1, np.float32))
    masked = [masks[name].mask(0, form.encode(np.zeros(1)).integers, form.sum_bits) for name in names]
    began = time.process_time()
    of.ask(names)
    for name in names:
        of.take_revealed(name, revealed[name])
    of.sum_of(0, masked, form)
    coordinator_s += time.process_time() - began
    return KeySeconds(fleet.session_device_s, device_s / devices, coordinator_s)
