"""Attacks: what bad devices send in place of what they computed. They know what all honest devices send."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_client.exchange import TensorKey
from edge_client.sync.layer_statistics import DOUBTS


@dataclass(frozen=True)
class Sent:
    """What a device sends in a step, or a round."""

    samples: int
    tensors: Mapping[TensorKey, Tensor]


Poison = Callable[[Sent, Sequence[Sent]], Sent]
"""Returns what a bad device sends, of what it computed and of what the honest ones send."""
LEARNT = ("gradient", "delta")


@dataclass(frozen=True)
class Attack:
    """What the bad devices of a trial do."""

    name: str
    poison: Poison | None = None
    """None where they send what they computed."""
    flips_labels: bool = False
    """Whether they train on labels c - 1 - y of c classes."""
    needs_curvature: bool = False
    """Whether it is for second-order methods alone."""

    def apply(self, sent: Sequence[Sent], bad: int) -> list[Sent]:
        """Return what all devices send; the last `bad` ones are bad."""
        honest = sent[: len(sent) - bad]
        if self.poison is None or not bad:
            return list(sent)
        return [*honest, *(self.poison(own, honest) for own in sent[len(sent) - bad :])]


def _each(own: Sent, kinds: Sequence[str], change: Callable[[TensorKey, Tensor], Tensor], samples: int = 0) -> Sent:
    tensors = {key: change(key, value) if key[0] in kinds else value for key, value in own.tensors.items()}
    return Sent(samples or own.samples, tensors)


def _times(factor: float, kinds: Sequence[str] = LEARNT, samples: int = 0) -> Poison:
    return lambda own, _: _each(own, kinds, lambda _key, value: factor * value, samples)


def _huge_curvature(own: Sent, honest: Sequence[Sent]) -> Sent:  # noqa: ARG001
    return _each(own, ("curvature",), lambda key, value: value if key == DOUBTS else torch.full_like(value, 1e24))


def _doubts(own: Sent, honest: Sequence[Sent]) -> Sent:  # noqa: ARG001
    return _each(own, ("curvature",), lambda key, value: torch.ones_like(value) if key == DOUBTS else value)


def _a_little(z: float) -> Poison:
    """Return the attack of Baruch et al. 2019 (arxiv.org/abs/1902.06156): the mean, less z standard deviations."""

    def poison(own: Sent, honest: Sequence[Sent]) -> Sent:
        def change(key: TensorKey, _value: Tensor) -> Tensor:
            values = torch.stack([sent.tensors[key] for sent in honest])
            return values.mean(dim=0) - z * values.std(dim=0, unbiased=False)

        return _each(own, LEARNT, change)

    return poison


def _inner_product(factor: float) -> Poison:
    """Return the attack of Xie, Koyejo & Gupta 2020 (arxiv.org/abs/1903.03936): the mean, times a negative number."""

    def poison(own: Sent, honest: Sequence[Sent]) -> Sent:
        return _each(
            own, LEARNT, lambda key, _: -factor * torch.stack([sent.tensors[key] for sent in honest]).mean(dim=0)
        )

    return poison


NONE = Attack("none")
ATTACKS = (
    Attack("gradients x-10", _times(-10.0)),
    Attack("x-1, 2^20 samples", _times(-1.0, samples=1 << 20)),
    Attack("sign flip", _times(-1.0)),
    Attack("label flip", flips_labels=True),
    Attack("a little, z 0.5", _a_little(0.5)),
    Attack("a little, z 1.5", _a_little(1.5)),
    Attack("inner product, 0.5", _inner_product(0.5)),
    Attack("inner product, 5", _inner_product(5.0)),
    Attack("curvature x-10", _times(-10.0, ("curvature",)), needs_curvature=True),
    Attack("curvature 1e24", _huge_curvature, needs_curvature=True),
    Attack("doubts all curvature", _doubts, needs_curvature=True),
)
BY_NAME = {attack.name: attack for attack in (NONE, *ATTACKS)}
