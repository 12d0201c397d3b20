"""Hooks that stay on the module that they were put on."""

from collections.abc import Callable
from typing import Any


class Hook:
    """A module's hook; in a copy or a pickle of the module its place is taken by one that does nothing."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: object) -> Callable[..., None]:
        return _do_nothing

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _nothing, ()


def _nothing() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*_args: Any, **_kwargs: Any) -> None:
    pass
