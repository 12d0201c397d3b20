"""Personal layers: parts of a model that each device keeps for itself, chosen by patterns of their names.

As the head of Arivazhagan et al. 2019 ("Federated Learning with Personalization Layers",
https://arxiv.org/abs/1912.00818), or the normalisation layers of Li et al. 2021 ("FedBN",
https://arxiv.org/abs/2102.07623).
"""

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase

from edgenewton.common.options import OptionError
from torch import Tensor, nn

_NEAREST = 3


def patterns_of(value: str | Collection[str]) -> tuple[str, ...]:
    """Return patterns that are given one by one, or as one text with commas between them."""
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(filter(None, (part.strip() for part in parts)))


def personal_names(model: nn.Module, patterns: Collection[str]) -> frozenset[str]:
    """Return the names, as in `state_dict`, of a model's parameters and buffers that patterns choose.

    A pattern, as of file names, is matched against the names of parameters, buffers and modules; that of a module
    chooses everything in it. A tensor that has several names is chosen by each of them.

    Raises:
        OptionError: a pattern matches nothing; the text names the nearest names.

    """
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    chosen: set[Tensor] = set()
    for pattern in patterns:
        matching = [
            tensor for name, tensor in tensors.items() if any(fnmatchcase(n, pattern) for n in _with_owners(name))
        ]
        if not matching:
            raise OptionError("personal", pattern, _nothing_matches(pattern, tensors))
        chosen.update(matching)
    return frozenset(name for name, tensor in tensors.items() if tensor in chosen)


def _with_owners(name: str) -> Iterator[str]:
    """Yield a name, and those of the modules around it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _nothing_matches(pattern: str, tensors: Collection[str]) -> str:
    known = list(dict.fromkeys(owner for name in tensors for owner in _with_owners(name)))
    near = get_close_matches(pattern.strip("*."), known, _NEAREST, cutoff=0.4) or known[:_NEAREST]
    return f"no parameter, buffer or module of the model has such a name; the nearest are {', '.join(near)}"
