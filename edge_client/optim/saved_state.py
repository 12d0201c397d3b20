"""States of optimizers: those of earlier releases, and those that other devices may see."""

from collections.abc import Collection
from typing import Any

_FORMER_NAMES = {"promised": "predicted_decrease"}


def in_present_names(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of an optimizer's state in which everything has the name that it has in this release."""
    state = {_FORMER_NAMES.get(name, name): value for name, value in state.items()}
    if "steps" in state:
        state["sync"] = {"step": state.pop("steps")}
    return state


def without_personal(state: dict[str, Any], parameters: Collection[int], layers: Collection[str]) -> dict[str, Any]:
    """Return an optimizer's state without what belongs to the personal layers, for other devices.

    Args:
        state: of `NewtonOptimizer`.
        parameters: numbers of the personal parameters, in the order of the groups.
        layers: names of the personal layers.

    """
    return state | {key: _without(state[key], dropped) for key, dropped in _parts(parameters, layers)}


def with_personal(
    state: dict[str, Any], own: dict[str, Any], parameters: Collection[int], layers: Collection[str]
) -> dict[str, Any]:
    """Undo `without_personal` with what belongs to the personal layers in this device's own state."""
    return state | {
        key: _without(state.get(key, {}), kept) | {name: value for name, value in own[key].items() if name in kept}
        for key, kept in _parts(parameters, layers)
    }


def _parts(parameters: Collection[int], layers: Collection[str]) -> list[tuple[str, Collection[Any]]]:
    return [("state", parameters), ("curvature", layers)]


def _without(state: dict[Any, Any], names: Collection[Any]) -> dict[Any, Any]:
    return {name: value for name, value in state.items() if name not in names}
