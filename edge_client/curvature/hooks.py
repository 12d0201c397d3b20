"""Hooks that stay on the module that they were put on."""

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch


class Hook(partial[Any]):
    """A module's hook; in a copy or a pickle of the module its place is taken by one that does nothing.

    In a compiled model it runs as it is written. Were it compiled too, it would be again whenever what it reads has
    changed, such as the number of the step, until torch gives up on the model's own code.
    """

    def __new__(cls, function: Callable[..., Any]) -> Self:
        """Make a hook of a function."""
        return super().__new__(cls, torch.compiler.disable(function))  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: object) -> Callable[..., None]:
        return _do_nothing

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _nothing, ()


def _nothing() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*_args: Any, **_kwargs: Any) -> None:
    pass
