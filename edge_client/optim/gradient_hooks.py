"""Hooks on a model's parameters that tell when backward has left a gradient."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn


class GradientHooks:
    """Those on the parameters of a model that require gradients.

    Args:
        model: the model.
        after: is called with a parameter when its gradient is there.

    """

    def __init__(self, model: nn.Module, after: Callable[[Tensor], None]) -> None:
        self._model = model
        self._after = after
        self._handles: dict[Tensor, Any] = {}
        self._gradients: dict[Tensor, Tensor] = {}
        """Each parameter's, as its last backward left it."""
        self.extend()

    def extend(self) -> None:
        """Put hooks also on the parameters that require gradients now."""
        for parameter in self._model.parameters():
            if parameter.requires_grad and parameter not in self._handles:
                handle = parameter.register_post_accumulate_grad_hook(self._tell)  # type: ignore[no-untyped-call]
                self._handles[parameter] = handle

    def lacks_any(self, parameters: Iterable[Tensor]) -> bool:
        """Whether one of these parameters requires gradients and has no hook: it was frozen."""
        return any(parameter.requires_grad and parameter not in self._handles for parameter in parameters)

    def is_anew(self, parameter: Tensor) -> bool:
        """Note a parameter's gradient; return whether it was set to None since, without the optimizer."""
        gradient = parameter.grad
        is_anew = self._gradients.get(parameter, gradient) is not gradient
        if is_anew:
            self._gradients = {}
        if gradient is not None:
            self._gradients[parameter] = gradient
        return is_anew

    def forget(self) -> None:
        """Forget the gradients: the next ones are of another batch."""
        self._gradients = {}

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles.values():
            handle.remove()

    def _tell(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._after(parameter)
