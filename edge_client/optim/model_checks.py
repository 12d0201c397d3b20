"""Models that cannot be trained are refused before anything is done with them."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def model_and_params(
    params_or_model: nn.Module | Iterable[Any], model: nn.Module | None
) -> tuple[nn.Module, list[Any]]:
    """Return the model, and what torch's optimizer takes for its parameters.

    Raises:
        ValueError: there is no model, or it cannot be trained; the text says what to do.

    """
    if isinstance(params_or_model, nn.Module):
        check_model(params_or_model)
        return params_or_model, [parameter for parameter in params_or_model.parameters() if parameter.requires_grad]
    if model is None:
        raise ValueError(
            "the optimizer needs the model itself, because it estimates curvature from what the model's layers see: "
            "write NewtonOptimizer(model), or NewtonOptimizer(groups, model=model) for groups of its parameters"
        )
    check_model(model)
    return model, list(params_or_model)


def check_parameters(model: nn.Module, groups: Iterable[dict[str, Any]]) -> None:
    """Check that the parameters of groups are a model's.

    Raises:
        ValueError: one is not.

    """
    known = set(model.parameters())
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            if parameter not in known:
                raise ValueError(
                    f"group {number} has a parameter of shape {list(parameter.shape)} that is not the model's; make it "
                    "part of the model, such as nn.ModuleDict({'model': model, 'scale': nn.ParameterList([scale])})"
                )


def check_model(model: nn.Module) -> None:
    """Check that a model can be trained.

    Raises:
        ValueError: it cannot; the text names the module or parameter, and says what to do.

    """
    if hasattr(model, "_orig_mod"):
        raise ValueError("the model is compiled; make the optimizer with the model itself, and compile it afterwards")
    for name, module in model.named_modules():
        _check_module(name or "the model itself", module)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"parameter {name!r} is on the device 'meta' and has no values: load the model first")
        if parameter.is_complex():
            raise ValueError(f"parameter {name!r} is complex; keep its real and imaginary parts as two parameters")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("the model has no parameter that requires a gradient; nothing is to be optimised")


def _kinds(module: nn.Module) -> set[str]:
    return {kind.__name__ for kind in type(module).__mro__}


def _check_module(name: str, module: nn.Module) -> None:
    kind = type(module).__name__
    if isinstance(module, (DistributedDataParallel, DataParallel)) or "FullyShardedDataParallel" in _kinds(module):
        raise ValueError(
            f"{name} is wrapped in {kind}, which synchronises gradients itself; give the optimizer the model inside "
            "(model.module), and let `sync` do it"
        )
    if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
        raise ValueError(f"{name} is a quantised {kind}, which has no gradients; train it before it is quantised")
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
        raise ValueError(f"{name} ({kind}) has sparse=True; the devices' mean is dense: make it with sparse=False")
