"""A device's whole state: what it saves, hands to another device, and takes over from one."""

import hashlib
import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from edge_client.exchange import StepResult

if TYPE_CHECKING:
    from edge_client.optim.newton import NewtonOptimizer


def parameters_digest(model: nn.Module) -> bytes:
    """Return the SHA-256 of a model's parameters; its buffers differ between devices while they train."""
    return tensors_digest(dict(model.named_parameters()))


def weights_digest(model: nn.Module) -> bytes:
    """Return the SHA-256 of a model's parameters and buffers."""
    return tensors_digest(model.state_dict())


def tensors_digest(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the SHA-256 of tensors with their names, types and shapes."""
    data = dump_tensors({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    return hashlib.sha256(data).digest()


def dump_state(state: dict[str, Any]) -> bytes:
    """Return a state of tensors and plain values as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def load_state(data: bytes, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the state in bytes that `dump_state` gave, on a device; bytes that would run code are refused.

    Raises:
        ValueError: they are no such state.

    """
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location=device)
    except Exception as error:  # damaged bytes make torch's reader fail in any way
        raise ValueError(f"the state cannot be read: {error}") from None
    return state


class ModelReplica:
    """A model and its optimizer, as the exchange sees them.

    Args:
        model: the model.
        optimizer: what trains it.
        next_step: the first step that its state does not contain; None for a state that was not trained.
        is_shared: whether the weights are equal on all devices before every step.
        apply: takes a committed step.
        buffers: gives the buffers that the batch that is on has changed, as they were before it.

    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: "NewtonOptimizer",
        *,
        next_step: int | None,
        is_shared: bool,
        apply: Callable[[StepResult], None],
        buffers: Callable[[], Mapping[str, Tensor]],
    ) -> None:
        self.next_step = next_step
        self.is_shared = is_shared
        self._model = model
        self._optimizer = optimizer
        self._apply = apply
        self._buffers = buffers

    def digest(self) -> bytes:
        """Return the SHA-256 of the parameters."""
        return parameters_digest(self._model)

    def dump(self) -> bytes:
        """Return weights, optimizer and curvature, as they were before the step that is on."""
        weights = self._model.state_dict()
        weights.update((name, buffer) for name, buffer in self._buffers().items() if name in weights)
        return dump_state({"model": weights, "optimizer": self._optimizer.state_dict()})

    def load(self, data: bytes) -> None:
        """Take over what another device dumped.

        Raises:
            ValueError: it is no such state, or belongs to another model.

        """
        state = load_state(data, next(self._model.parameters()).device)
        try:
            self._model.load_state_dict(state["model"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the state does not fit this model: {error}") from None
        self._optimizer.load_state_dict(state["optimizer"])

    def apply(self, result: StepResult) -> None:
        """Apply a committed step."""
        self._apply(result)
