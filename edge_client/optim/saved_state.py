"""States of optimizers: those of earlier releases, and those that other devices may see."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

_FORMER_NAMES = {"promised": "predicted_decrease"}


def in_present_names(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of an optimizer's state in which everything has the name that it has in this release."""
    state = {_FORMER_NAMES.get(name, name): value for name, value in state.items()}
    if "steps" in state:
        state["sync"] = {"step": state.pop("steps")}
    return state


class Personal(NamedTuple):
    """What in an optimizer's state belongs to the personal layers: it stays on the device."""

    parameters: Collection[int]
    """Numbers of the parameters, in the order of the groups."""
    layers: Collection[str]
    tensors: Collection[str]
    """Names of parameters and buffers."""

    def taken_from(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state without it, for other devices."""
        return self._with(state, {})

    def kept_in(self, state: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
        """Return a state of another device, with what this device's own has of it."""
        return self._with(state, own)

    def _with(self, state: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
        places = (("state",), self.parameters), (("curvature",), self.layers), (("average", "parameters"), self.tensors)
        for path, names in places:
            state = _replaced(state, own, path, names)
        return state


def _replaced(
    state: dict[str, Any], own: dict[str, Any], path: Sequence[str], names: Collection[Any]
) -> dict[Any, Any]:
    """Return a state in which, at the end of a path, what has these names is what `own` has there, or nothing."""
    if not path:
        kept = {name: value for name, value in own.items() if name in names}
        return {name: value for name, value in state.items() if name not in names} | kept
    first, *rest = path
    if first not in state:
        return state
    return state | {first: _replaced(state[first], own.get(first, {}), rest, names)}
