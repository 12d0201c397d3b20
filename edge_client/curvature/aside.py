"""Runs of a model that are no part of its training: nothing in it tells afterwards that they were."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from edge_client.curvature.random_state import seeded


@contextmanager
def aside(model: nn.Module, seed: int) -> Iterator[None]:
    """Run a model aside: inside it computes the same on all devices that have the same parameters and inputs.

    Its mode is the present one, but layers with running moments (BatchNorm) use those of the batch, as each device's
    running moments are its own. Autocast is off, a compiled model runs as it was written, and random numbers come from
    the seed. Afterwards buffers, modes and all generators are as before, bit by bit.

    Args:
        model: its own forward may write into its buffers, which are copies meanwhile.
        seed: of random numbers, at least 0, below 2^32.

    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    with ExitStack() as stack:
        stack.enter_context(seeded(seed, devices))
        stack.enter_context(_copied_buffers(model))
        stack.enter_context(_moments_of_the_batch(model))
        for kind in {device.type for device in devices}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if any(map(_is_compiled, model.modules())):  # else the import of the compiler would be slow
            # Compiled code rounds otherwise, draws other random numbers, and may not see hooks that are new.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.enable_grad())
        yield


def _is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` made a module, or its own `compile` was called."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


@contextmanager
def _copied_buffers(model: nn.Module) -> Iterator[None]:
    # Originals are put away, not restored: a graph whose backward is still to come may have saved them, and autograd
    # refuses tensors that were written to, whatever they hold.
    originals = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    copies = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    for buffers, original in originals:
        buffers.update({name: buffer if buffer is None else copies[buffer] for name, buffer in original.items()})
    try:
        yield
    finally:
        for buffers, original in originals:
            buffers.clear()
            buffers.update(original)


@contextmanager
def _moments_of_the_batch(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        if isinstance(module, _NormBase):
            module.training = True
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training
