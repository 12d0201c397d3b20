"""A model's tensors by name: what is trained together, what is averaged, and what stays on the device."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from edgenewton.common.options import OptionError
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from edge_client.curvature.preconditioner import PreconditionedLayer
from edge_client.exchange import StepResult, TensorKey
from edge_client.sync.personal import personal_names
from edge_client.sync.replica import tensors_digest


class ModelTensors:
    """Those of a model, as they are now; parameters that are frozen now and not later are to be taken in anew.

    Args:
        model: the model.
        layers: its preconditioned layers; those that are personal are marked.
        personal: patterns of the names of what is personal: see `personal_names`.
        known: parameters that are taken for trained, frozen or not.

    Raises:
        OptionError: a pattern matches nothing, or a layer only in part, or all that is trained is personal.

    """

    def __init__(
        self,
        model: nn.Module,
        layers: Collection[PreconditionedLayer],
        personal: Collection[str] = (),
        known: Collection[Tensor] = (),
    ) -> None:
        self._model = model
        self._patterns = personal
        self.personal = personal_names(model, personal)
        """Names of the tensors that never leave this device."""
        self.trained: dict[Tensor, str] = {
            p: name for name, p in model.named_parameters() if p.requires_grad or p in known
        }
        """Names of the parameters that are trained."""
        self.names = {p: name for p, name in self.trained.items() if name not in self.personal}
        """Of those that all devices train together."""
        self.own = {p: name for p, name in self.trained.items() if name in self.personal}
        """Of the personal ones."""
        if self.trained and not self.names:
            raise OptionError(
                "personal", ", ".join(personal), "it leaves no trained parameter for the devices to share"
            )
        self._mark(layers)
        self._still: dict[str, nn.Module] = {}
        self.settle()

    def settle(self) -> None:
        """Take note of what stays as it is: frozen parameters, and moments of frozen norms that do not train."""
        self._still = {
            f"{module_name}.{name}".lstrip("."): module
            for module_name, module in self._model.named_modules(remove_duplicate=False)
            if isinstance(module, _NormBase) and not module.training and not self._is_trained(module)
            for name in module._buffers
        }
        parameters = self._model.named_parameters(remove_duplicate=False)
        frozen = {name for name, parameter in parameters if parameter not in self.trained}
        self.frozen = frozenset(frozen | self._still.keys()) - self.personal
        """Names of the tensors that are equal on all devices from the beginning, and stay so."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Those that all devices train together."""
        return {name: parameter for parameter, name in self.names.items()}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Those that can be averaged."""
        return {name: buffer for name, buffer in self._common_buffers() if buffer.is_floating_point()}

    @property
    def all(self) -> dict[str, Tensor]:
        """Parameters that all devices train together, and every buffer that may change and is not personal."""
        return self.parameters | dict(self._common_buffers())

    @property
    def staying(self) -> frozenset[str]:
        """Names of the tensors that are in no exchange and no snapshot."""
        return self.personal | self.frozen

    @property
    def options(self) -> dict[str, str]:
        """What must be equal on all devices: what is personal, and what is frozen, but for the rounding of weights."""
        told = {"personal": ", ".join(sorted(self._patterns))} if self._patterns else {}
        weights = self.frozen_weights
        numbers = {name: tensor for name, tensor in self._frozen_tensors().items() if name not in weights}
        for kind, tensors in (("weights", weights), ("numbers", numbers)):
            if tensors:
                told[f"frozen_{kind}"] = f"{len(tensors)} tensors with the SHA-256 {tensors_digest(tensors).hex()[:16]}"
        return told

    @property
    def frozen_weights(self) -> dict[str, Tensor]:
        """Those of the frozen tensors in which machines may differ by rounding, where each has made its own."""
        return {name: tensor for name, tensor in self._frozen_tensors().items() if tensor.is_floating_point()}

    def buffer_specs(self) -> list[TensorSpec]:
        """Return what describes the averaged buffers to the exchange."""
        return _specs(self.buffers, "parameter")

    def weight_specs(self) -> list[TensorSpec]:
        """Return the same of the parameters that all devices train together, for when rounding is undone."""
        return _specs(self.parameters, "weight")

    def check_still(self) -> None:
        """Check that nothing changes what was taken to stay as it is.

        Raises:
            RuntimeError: a norm trains its moments now; the text names it.

        """
        for name, module in self._still.items():
            if module.training:
                raise RuntimeError(
                    f"{name!r} is of a frozen layer that was in evaluation mode when this device joined, so that it is "
                    "not exchanged; now the layer is in training mode: call its eval() after model.train(), or join "
                    "with the layer in training mode"
                )

    def _mark(self, layers: Collection[PreconditionedLayer]) -> None:
        """Note which layers are personal."""
        for state in layers:
            of_layer = {parameter in self.own for parameter in state.layer.parameters.values()}
            if len(of_layer) > 1:
                expected = (
                    f"weight and bias of layer {state.name!r} have one curvature: name both, {state.name + '.*'!r}"
                )
                raise OptionError("personal", ", ".join(self._patterns), expected)
            state.layer.is_personal = of_layer == {True}

    def _frozen_tensors(self) -> dict[str, Tensor]:
        values = self._model.state_dict()
        return {name: values[name] for name in sorted(self.frozen & values.keys())}

    def _common_buffers(self) -> list[tuple[str, Tensor]]:
        staying = self.personal | self._still.keys()
        return [(name, buffer) for name, buffer in self._model.named_buffers() if name not in staying]

    def _is_trained(self, module: nn.Module) -> bool:
        return any(parameter in self.trained for parameter in module.parameters(recurse=False))


def spec_of(key: TensorKey, shape: Sequence[int], like: Tensor, structure: str = "") -> TensorSpec:
    """Return what describes a tensor of a shape, and of the type of another one, to the exchange."""
    kind, name = key
    return TensorSpec(name, tuple(shape), str(like.dtype).removeprefix("torch."), kind, structure=structure)


def _specs(tensors: Mapping[str, Tensor], kind: str) -> list[TensorSpec]:
    return [spec_of((kind, name), tensor.shape, tensor) for name, tensor in tensors.items()]


def averaged_in(result: StepResult, kind: str = "parameter") -> dict[str, Tensor]:
    """Return the tensors of the model that a step has averaged, by name; none of a step without samples.

    Args:
        result: of the step.
        kind: "parameter", or "weight" for the parameters in which rounding is undone.

    """
    tensors = result.tensors if result.samples else {}  # without samples the means are zeros
    return {name: tensor for (of_kind, name), tensor in tensors.items() if of_kind == kind}


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies that share no memory."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def put(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Give tensors the values that there are for their names."""
    for name, value in values.items():
        if name in tensors:
            tensors[name].copy_(value)


@contextmanager
def held(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let tensors have, for a while, the values that there are for their names."""
    kept = copies({name: tensor for name, tensor in tensors.items() if name in values})
    put(tensors, values)
    try:
        yield
    finally:
        put(tensors, kept)
