"""What a user may call the hardware that a model is computed on; what there is of it says `devices.py`, with torch."""

import re

KINDS = ("cpu", "cuda", "mps")
AUTO = "auto"
"""CUDA's first device if there is one, else Apple's MPS, else the CPU."""


class DeviceNameError(ValueError):
    """A device is not called so; the text says what there is."""


def check_device_name(name: str) -> str:
    """Return the name of a kind of hardware, perhaps with a number such as "cuda:1", or "auto".

    Raises:
        DeviceNameError: nothing is called so.

    """
    if name != AUTO and not re.fullmatch(rf"({'|'.join(KINDS)})(:\d+)?", name):
        raise DeviceNameError(
            f"device {name!r} is unknown; known are {AUTO}, {', '.join(KINDS)}, and one of several by its number, "
            "like cuda:1"
        )
    return name
