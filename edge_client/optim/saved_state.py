"""States that optimizers of earlier releases saved."""

from typing import Any

_FORMER_NAMES = {"promised": "predicted_decrease"}


def in_present_names(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of an optimizer's state in which everything has the name that it has in this release."""
    state = {_FORMER_NAMES.get(name, name): value for name, value in state.items()}
    if "steps" in state:
        state["sync"] = {"step": state.pop("steps")}
    return state
