"""Forward passes: which samples took part in a backward, as the layers saw them."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor

_DEPTH = 4
"""Containers in containers are looked into so far."""


class ForwardPass:
    """One forward of a model, or of some of its layers that are called on their own.

    Args:
        on_gradient: told each time that a gradient reaches it.
        batch: leading dimension of what the model was called with; None if that has none.
        is_whole: whether the model itself was called, not its layers.

    """

    def __init__(
        self, on_gradient: Callable[["ForwardPass"], None], batch: int | None = None, *, is_whole: bool = False
    ) -> None:
        self.has_gradient = False
        """Whether a backward has reached it."""
        self._on_gradient = on_gradient
        self._batch = batch
        self._is_whole = is_whole
        self._seen: Counter[int] = Counter()
        self._reached: Counter[int] = Counter()
        self._samples: int | None = None

    @property
    def goes_on(self) -> bool:
        """Whether another layer that is called on its own belongs to it."""
        return not (self._is_whole or self.has_gradient)

    def note_use(self, batch: int) -> None:
        """Note that a layer was called with so many rows."""
        self._seen[batch] += 1

    def note_gradient(self, batch: int | None = None) -> None:
        """Note that a gradient has reached the output of the model, or of a layer that had so many rows."""
        self.has_gradient = True
        self._on_gradient(self)
        if batch is not None:
            self._reached[batch] += 1

    def watch(self, output: Tensor, batch: int | None = None) -> None:
        """Note each gradient that reaches an output of the model, or of a layer that had so many rows."""
        output.register_hook(partial(_note_gradient, self, batch))  # type: ignore[no-untyped-call]

    @property
    def samples(self) -> int:
        """How many samples it had; what is said first stays.

        That is what the model was called with, if its layers had rows for each. Else most of the layers that gradients
        have reached had so many rows, or a multiple: tokens of a sequence may be folded into the batch.
        """
        if self._samples is None:
            self._samples = self._count()
        return self._samples

    def _count(self) -> int:
        rows, _ = max(self._reached.items(), key=lambda seen: (seen[1], seen[0]), default=(0, 0))
        if self._batch and (not rows or any(seen % self._batch == 0 for seen in self._reached)):
            return self._batch
        if not rows:
            return 0 if self._reached or self._batch == 0 else 1
        fitting = Counter({seen: count for seen, count in self._seen.items() if seen > 1 and rows % seen == 0})
        return fitting.most_common(1)[0][0] if fitting else rows


def tensors_in(value: object, depth: int = _DEPTH) -> Iterator[Tensor]:
    """Yield the tensors in what a model is called with or returns: in mappings, sequences and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif depth:
        for inner in _contents(value):
            yield from tensors_in(inner, depth - 1)


def leading_dimension(*values: object) -> int | None:
    """Return the length of the first tensor that has one; None if there is none."""
    return next((len(tensor) for value in values for tensor in tensors_in(value) if tensor.dim()), None)


def _note_gradient(forward_pass: ForwardPass, batch: int | None, gradient: Tensor) -> None:  # noqa: ARG001
    forward_pass.note_gradient(batch)


def _contents(value: Any) -> Iterator[object]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, field.name) for field in dataclasses.fields(value))
