"""A thread's memory for what is between two operations: fresh memory costs more than the arithmetic."""

import threading

import numpy as np
from numpy.typing import NDArray

_memory = threading.local()


def scratch(length: int) -> NDArray[np.uint32]:
    """Return memory of this thread, whose content is undefined; the next call returns the same."""
    memory: NDArray[np.uint32] | None = getattr(_memory, "words", None)
    if memory is None or len(memory) < length:
        memory = _memory.words = np.empty(length, dtype="<u4")
    return memory[:length]
