"""Which backward is on."""

import torch

NONE = -1


def current_backward() -> int:
    """Return a number of the backward that is on in this thread, which no other has; NONE outside of any."""
    return int(torch._C._current_graph_task_id())
