"""Weights that are the same in every thread: torch's seed is one for all of them."""

import threading
from contextlib import contextmanager

import torch

_SEED = threading.Lock()


@contextmanager
def seeded(seed):
    """Let nobody else who asks here draw from torch's generator while something is made from a seed."""
    with _SEED:
        torch.manual_seed(seed)
        yield
