"""Hooks that stay on the module that they were put on."""

from collections.abc import Callable
from functools import partial
from typing import Any


class Hook(partial[Any]):
    """A module's hook; in a copy or a pickle of the module its place is taken by one that does nothing."""

    def __deepcopy__(self, memo: object) -> Callable[..., None]:
        return _do_nothing

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _nothing, ()


def _nothing() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*_args: Any, **_kwargs: Any) -> None:
    pass
