"""A device's whole state: what it saves, hands to another device, and takes over from one."""

import hashlib
import io
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from edgenewton.v1.sketch import Sketch
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from edge_client.devices import device_of, on_device, to_host
from edge_client.exchange.interface import StepResult
from edge_client.sync.sketching import sketch_of


def parameters_digest(model: nn.Module) -> bytes:
    """Return the SHA-256 of a model's parameters; its buffers differ between devices while they train."""
    return tensors_digest(dict(model.named_parameters()))


def weights_digest(model: nn.Module) -> bytes:
    """Return the SHA-256 of a model's parameters and buffers."""
    return tensors_digest(model.state_dict())


def tensors_digest(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the SHA-256 of tensors with their names, types and shapes."""
    data = dump_tensors({name: to_host(tensor).contiguous() for name, tensor in tensors.items()})
    return hashlib.sha256(data).digest()


def dump_state(state: dict[str, Any]) -> bytes:
    """Return a state of tensors and plain values as bytes, which a device of any kind can load."""
    buffer = io.BytesIO()
    torch.save(to_host(state), buffer)
    return buffer.getvalue()


def load_state(data: bytes) -> dict[str, Any]:
    """Return the state in bytes that `dump_state` gave, in the host's memory; bytes that would run code are refused.

    Raises:
        ValueError: they are no such state.

    """
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # damaged bytes make torch's reader fail in any way
        raise ValueError(f"the state cannot be read: {error}") from None
    return state


class _Part(NamedTuple):
    save: Callable[[], dict[str, Any]]
    load: Callable[[dict[str, Any]], None]


class ModelReplica:
    """A model with what trains it, as the exchange sees them; parts register their state by name.

    Args:
        model: the model.
        is_shared: whether the weights are equal on all devices before every step.
        apply: takes a committed step.
        before: gives the tensors of the model that the step that is on has changed already, as they were before it.
        staying: gives the names of the model's tensors that are no part of the state: each device has its own, or all
            have the same from the beginning.
        frozen: gives, by name, those of them that all have from the beginning and that rounding may differ in.

    """

    def __init__(
        self,
        model: nn.Module,
        *,
        is_shared: bool,
        apply: Callable[[StepResult], None],
        before: Callable[[], Mapping[str, Tensor]],
        staying: Callable[[], Collection[str]] = frozenset,
        frozen: Callable[[], Mapping[str, Tensor]] = dict,
    ) -> None:
        self.next_step: int | None = None
        """The first step that the state does not contain; None for a state that was not trained."""
        self.is_shared = is_shared
        self.epsilon_of: Callable[[], float | None] = lambda: None
        """Returns what this device's data have cost of a privacy budget; who keeps one sets it."""
        self._model = model
        self._apply = apply
        self._before = before
        self._staying = staying
        self._frozen = frozen
        self._parts: dict[str, _Part] = {}
        self.register("model", self._weights, self._load_weights)

    def register(self, name: str, save: Callable[[], dict[str, Any]], load: Callable[[dict[str, Any]], None]) -> None:
        """Make a part's state one of this state; parts are loaded in the order in which they were registered."""
        self._parts[name] = _Part(save, load)

    @property
    def epsilon(self) -> float | None:
        """What this device's data have cost of a privacy budget so far; None without one."""
        return self.epsilon_of()

    def digest(self) -> bytes:
        """Return the SHA-256 of the common parameters, as they were before the step that is on.

        Buffers are each device's own.
        """
        return tensors_digest(self._common())

    def sketch(self, seed: int) -> Sketch:
        """Return the sketch of the same parameters with a seed."""
        return sketch_of(self._common(), seed)

    def frozen_sketch(self) -> Sketch | None:
        """Return that of what is frozen, with the seed 0; None if nothing is."""
        frozen = self._frozen()
        return sketch_of(frozen, 0) if frozen else None

    def dump(self) -> bytes:
        """Return the states of all parts, as they were before the step that is on."""
        return dump_state({name: part.save() for name, part in self._parts.items()})

    def load(self, data: bytes) -> None:
        """Take over what another device dumped.

        Raises:
            ValueError: it is no such state, or belongs to another model.

        """
        state = on_device(load_state(data), device_of(self._model))
        missing = self._parts.keys() - state.keys()
        if missing:
            raise ValueError(f"the state lacks {', '.join(sorted(missing))}")
        for name, part in self._parts.items():
            part.load(state[name])

    def apply(self, result: StepResult) -> None:
        """Apply a committed step."""
        self._apply(result)

    def _common(self) -> dict[str, Tensor]:
        before, staying = self._before(), self._staying()
        return {name: before.get(name, p) for name, p in self._model.named_parameters() if name not in staying}

    def _weights(self) -> dict[str, Any]:
        weights = self._model.state_dict()
        weights.update((name, tensor) for name, tensor in self._before().items() if name in weights)
        staying = self._staying()
        return {name: tensor for name, tensor in weights.items() if name not in staying}

    def _load_weights(self, weights: dict[str, Any]) -> None:
        staying = self._staying()
        kept = {name: tensor for name, tensor in self._model.state_dict().items() if name in staying}
        try:
            self._model.load_state_dict({**weights, **kept})
        except RuntimeError as error:
            raise ValueError(f"the state does not fit this model: {error}") from None
