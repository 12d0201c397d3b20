"""The engine of ExecuTorch programs: PyTorch's runtime for edge devices, an optional dependency (extra `executorch`).

A model file is an ordinary ExecuTorch program (.pte) with two methods: `forward` takes one decoded sample and returns
its probabilities, and `edgenewton` returns `ModelInfo` as JSON. Behind the program stands a seal; ExecuTorch's loaders
pass over it.
"""

import contextlib
import importlib
import os
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from edgenewton.common.extras import MissingExtraError, needing
from edgenewton.common.sealed_file import DamagedError, Kind, OtherKindError, check
from numpy.typing import NDArray

from edge_client.device_name import AUTO, check_device_name
from edge_client.inference.errors import ArtefactError
from edge_client.inference.model import ModelInfo

FORMAT_VERSION = 1
FORWARD, INFO = "forward", "edgenewton"

# What `executorch.runtime` wraps; that module imports the whole exporter, which takes seconds and 140 MB.
RUNTIME = "executorch.extension.pybindings._C"
_CPUINFO = b"[cpuinfo_utils.cpp:"

_threads: list[int] = []
"""What the kernels of this process were given; empty at first."""


def import_executorch(module: str) -> types.ModuleType:
    """Return a module of the extra `executorch`.

    Raises:
        ArtefactError: it is not installed, or was built for another release of PyTorch.

    """
    try:
        with needing("ExecuTorch", "executorch"):
            import torch

            return importlib.import_module(module)
    except MissingExtraError as error:
        raise ArtefactError(str(error)) from None
    except ImportError as error:
        raise ArtefactError(
            f"the package 'executorch' cannot be loaded beside PyTorch {torch.__version__}: {error}; install releases "
            "that fit each other: pip install --upgrade 'edgenewton[executorch]'"
        ) from None


def check_executorch(device: str) -> None:
    """Check that ExecuTorch can be used, on a device.

    Raises:
        ArtefactError: it is not installed, or the device is not the CPU.

    """
    try:
        kind = check_device_name(device).partition(":")[0]
    except ValueError as error:
        raise ArtefactError(str(error)) from None
    if kind not in ("cpu", AUTO):
        raise ArtefactError(f"device {device!r}: ExecuTorch runs models on the CPU here; choose cpu, or another engine")
    import_executorch(RUNTIME)


def read_executorch(path: Path) -> bytes:
    """Return the bytes of a model file that `edge-client export --format executorch` wrote.

    Raises:
        ArtefactError: it is missing, damaged, or another program.

    """
    try:
        content = path.read_bytes()
        is_sealed = check(content, Kind.EXECUTORCH_MODEL)
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror or error}") from None
    except DamagedError as error:
        raise ArtefactError(f"{path} is damaged: {error}") from None
    except OtherKindError as error:
        raise ArtefactError(f"{path} is not a model for ExecuTorch: {error}") from None
    if not is_sealed:
        raise ArtefactError(f"{path} is not a model of EdgeNewton, or is damaged: its digest is not at its end")
    return content


class ExecutorchEngine:
    """Runs the bytes of a model file in ExecuTorch, sample by sample: a program holds memory for one.

    Args:
        content: the bytes.
        device: "cpu" or "auto".
        threads: that all programs of this process may use: the first engine decides it; as many as torch may use then,
            unless given.

    Raises:
        ArtefactError: ExecuTorch is not installed, refuses the model, or cannot use the device; or the model is of a
            newer release.

    """

    name = "executorch"

    def __init__(self, content: bytes, device: str = "cpu", threads: int | None = None) -> None:
        check_executorch(device)
        runtime = import_executorch(RUNTIME)

        import torch

        _set_threads_once(runtime, threads or torch.get_num_threads())
        self._to_tensor = torch.from_numpy
        self._content = content  # the program reads its weights from there
        try:
            self._program = runtime._load_program_from_buffer(content)
            (info,) = self._program.load_method(INFO)(())
            self._forward = self._program.load_method(FORWARD)
        except RuntimeError as error:
            raise ArtefactError(f"ExecuTorch refuses the model: {error}") from None
        self.info = ModelInfo.from_json(info, FORMAT_VERSION)

    def __call__(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return probabilities: see `Engine`."""
        samples = self._to_tensor(np.ascontiguousarray(raw))
        # Outputs are copies: the next sample overwrites the program's own memory.
        rows = [self._forward((samples[place : place + 1],))[0].numpy() for place in range(len(raw))]
        return np.concatenate(rows) if rows else np.empty((0, len(self.info.labels)), np.float32)


def _set_threads_once(runtime: types.ModuleType, threads: int) -> None:
    """Give the kernels their threads; once, because it may not be done while a model runs."""
    if _threads:
        return
    _threads.append(threads)
    with _without_remarks_on_the_processor():
        runtime._unsafe_reset_threadpool(threads)


@contextlib.contextmanager
def _without_remarks_on_the_processor() -> Iterator[None]:
    """Leave out what ExecuTorch's C++ writes about the processor's files; whatever else is written meanwhile stays."""
    sys.stderr.flush()
    screen = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(screen, 2)
                file.seek(0)
                os.write(2, b"".join(line for line in file if not line.startswith((_CPUINFO, b"[threadpool.cpp:"))))
    finally:
        os.close(screen)
