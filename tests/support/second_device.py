"""A second kind of device for machines without an accelerator: tensors that are elsewhere, as those of CUDA are.

Its tensors hold ordinary ones of the CPU, and refuse what CUDA's refuse: to be mixed with those of another device, to
become NumPy arrays, to be drawn from a generator of the CPU. It uses torch's experimental support for backends that are
written in Python (`torch.utils.backend_registration._setup_privateuseone_for_python_backend`).
"""

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "elsewhere"

lacks_float64 = False
"""Whether its tensors cannot be of float64, as those of MPS."""

_MAY_MIX = {"aten::copy_", "aten::_to_copy", "aten::_copy_from"}


class SecondDeviceTensor(torch.Tensor):
    """A tensor of the second device: `held` has the numbers."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def of(held):
        tensor = torch.Tensor._make_wrapper_subclass(
            SecondDeviceTensor,
            held.shape,
            held.stride(),
            held.storage_offset(),
            dtype=held.dtype,
            device=f"{NAME}:0",
            requires_grad=False,
        )
        tensor.held = held
        return tensor

    def tolist(self):  # torch's own refuses tensors of Python's making
        return self.held.tolist()

    def __repr__(self, **_):
        return f"{self.held!r} on {NAME}"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        wrapped = [leaf for leaf in leaves if isinstance(leaf, SecondDeviceTensor)]
        name = function._schema.name
        if name not in _MAY_MIX:
            for leaf in leaves:
                if isinstance(leaf, torch.Tensor) and not isinstance(leaf, SecondDeviceTensor) and leaf.dim():
                    raise RuntimeError(f"{name}: expected all tensors on one device, not on {NAME} and {leaf.device}")
                if isinstance(leaf, torch.Generator):
                    raise RuntimeError(f"{name}: expected a generator of {NAME}, not of {leaf.device}")
        target = kwargs.get("device")
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        is_here = torch.device(target or NAME).type == NAME
        if lacks_float64 and is_here and any(leaf is torch.float64 for leaf in leaves):
            raise TypeError(f"{name}: {NAME} has no float64")
        result = function(*tree_map(_unwrapped, args), **tree_map(_unwrapped, kwargs))
        if target is not None and torch.device(target).type == "cpu":
            return result
        if name == "aten::copy_" and not isinstance(args[0], SecondDeviceTensor):
            return args[0]
        for tensor in wrapped:
            # Torch has some results written into an empty tensor, such as a decomposition's status.
            assert tensor.shape in (tensor.held.shape, (0,)), f"{name} changes a tensor's shape, which is not followed"
        known = {id(tensor.held): tensor for tensor in wrapped}
        return tree_map(lambda x: _wrapped(x, known), result)


def _unwrapped(x):
    return x.held if isinstance(x, SecondDeviceTensor) else x


def _wrapped(x, known):
    if not isinstance(x, torch.Tensor):
        return x
    return known[id(x)] if id(x) in known else SecondDeviceTensor.of(x)


def _factory(function):
    def make(*args, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
        return SecondDeviceTensor.of(function(*args, dtype=dtype))

    return make


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def is_available(self):
        return True

    def device_count(self):
        return 1

    def manual_seed_all(self, seed):
        """It draws from the generator of the CPU."""

    def _is_in_bad_fork(self):
        return False


_setup_privateuseone_for_python_backend(NAME, _Module())
_library = torch.library.Library("aten", "IMPL")
for _name, _function in {
    "empty.memory_format": torch.empty,
    "empty_strided": torch.empty_strided,
    "eye": torch.eye,  # torch's own for any device change the shape of an empty tensor
    "eye.m": torch.eye,
    "arange": torch.arange,
    "arange.start": torch.arange,
    "arange.start_step": torch.arange,
}.items():
    _library.impl(_name, _factory(_function), "PrivateUse1")
