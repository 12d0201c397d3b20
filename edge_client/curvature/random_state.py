"""Random numbers that are drawn aside: equal wherever the seed is, and the generators go on as if none had been."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, devices: Iterable[torch.device]) -> Iterator[None]:
    """Seed the global generators inside, and set them back afterwards.

    They are torch's (of the CPU and of `devices`), from which dropout draws, and those of numpy and Python, from which
    some models draw the layers that they leave out.

    Args:
        seed: at least 0, below 2^32.
        devices: on which random numbers are drawn; of them those of CUDA and MPS have generators of their own.

    """
    devices = set(devices)
    cuda = sorted({device.index for device in devices if device.type == "cuda"})
    of_mps = torch.mps.get_rng_state() if any(device.type == "mps" for device in devices) else None
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=cuda):
        # torch.manual_seed would seed every CUDA device of the machine.
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        if of_mps is not None:
            torch.mps.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            if of_mps is not None:
                torch.mps.set_rng_state(of_mps)
            random.setstate(of_python)
            np.random.set_state(of_numpy)
