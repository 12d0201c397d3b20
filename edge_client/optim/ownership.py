"""Which optimizer has its hooks on a model: the last one that was made for it."""

import weakref
from collections.abc import Callable, Iterable

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_yielders: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""For each parameter how its optimizer is asked to make way, as long as there is that optimizer."""


def take_over(parameters: Iterable[Tensor], yields: Callable[[], None]) -> None:
    """Let those that had parameters until now make way, so that their hooks do not run beside the new one's.

    Args:
        parameters: of the new owner.
        yields: a method of the new owner, called when the next one comes; the owner is not kept alive for it.

    """
    parameters = list(parameters)
    before = dict.fromkeys(_yielders[parameter] for parameter in parameters if parameter in _yielders)
    for reference in before:
        if (make_way := reference()) is not None:
            make_way()
    mine = weakref.WeakMethod(yields)
    for parameter in parameters:
        _yielders[parameter] = mine
