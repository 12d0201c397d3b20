"""Memory that is freed in one step and taken again in the next.

By default glibc gives large blocks back to the system as soon as they are freed. Every step then takes them anew, page
by page, which costs more than all that the exchange does with them.
"""

import ctypes
import functools

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_KEPT_BLOCK = 32 << 20
"""glibc allows no more."""


@functools.cache
def keep_freed_memory(limit_bytes: int = 256 << 20) -> bool:
    """Let this process keep up to `limit_bytes` of freed memory (see mallopt(3)); return whether it can."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # another C library
    settings = {_M_MMAP_THRESHOLD: _LARGEST_KEPT_BLOCK, _M_TRIM_THRESHOLD: limit_bytes, _M_TOP_PAD: 16 << 20}
    return all(mallopt(name, value) for name, value in settings.items())
