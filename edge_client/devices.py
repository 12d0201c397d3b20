"""The hardware that a model is computed on, and copies from and to it.

Where the host's memory is pinned, a copy from or to CUDA goes on while both sides work.
"""

from typing import Any

import torch
from torch import Tensor, nn

from edge_client.device_name import AUTO, check_device_name

CPU = torch.device("cpu")


class DeviceError(ValueError):
    """The machine does not have the device; the text names it, and says what there is."""


def choose_device(name: str) -> torch.device:
    """Return the device of a name, as `check_device_name` takes it; "auto" is the fastest kind that there is.

    Raises:
        DeviceNameError: nothing is called so.
        DeviceError: this machine does not have it.

    """
    check_device_name(name)
    if name == AUTO:
        return next(torch.device(kind, 0) if kind != "cpu" else CPU for kind in ("cuda", "mps", "cpu") if count(kind))
    device = torch.device(name)
    there = count(device.type)
    if (device.index or 0) >= there:
        raise DeviceError(f"device {name!r} is not on this machine; it has {', '.join(available())}")
    return CPU if device.type == "cpu" else torch.device(device.type, device.index or 0)


def count(kind: str) -> int:
    """Return how many devices of a kind this machine has that torch can use."""
    if kind == "cpu":
        return 1
    module = getattr(torch, kind, None)
    return int(module.device_count()) if module is not None and module.is_available() else 0


def available() -> list[str]:
    """Return the names of what this machine has."""
    several = [f"cuda:{number}" for number in range(count("cuda"))]
    return ["cpu", *(["cuda"] if len(several) == 1 else several), *(["mps"] if count("mps") else [])]


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's parameters are; the CPU for a model without any."""
    return next((parameter.device for parameter in model.parameters()), CPU)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; with CUDA, what computes there next waits for the copy, and the host does not."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(value: Any) -> Any:
    """Return tensors in the host's memory, with the dictionaries, lists and tuples that they are in."""
    return on_device(value, CPU)


def on_device(value: Any, device: torch.device) -> Any:
    """Return tensors on a device, with the dictionaries, lists and tuples that they are in."""
    if isinstance(value, Tensor):
        return value.detach().to(device)
    if isinstance(value, dict):
        return {key: on_device(part, device) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_device(part, device) for part in value)
    return value
