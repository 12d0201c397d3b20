"""The engine of ONNX files: ONNX Runtime, an optional dependency (extra `onnx`).

A model file is an ordinary ONNX file, with `ModelInfo` in its metadata. Its last bytes are one more entry of the
metadata, the SHA-256 of all bytes before: Protocol Buffers allow that, since a message that is appended to another one
is merged into it. So damage is noticed, and any ONNX tool still reads the file.
"""

import hashlib
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from edgenewton.common.extras import MissingExtraError, needing
from numpy.typing import NDArray

from edge_client.device_name import AUTO, check_device_name
from edge_client.inference.errors import ArtefactError
from edge_client.inference.model import ModelInfo

INFO_KEY = "edgenewton"
FORMAT_VERSION = 1
INPUT, OUTPUT = "raw", "probabilities"

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

_DIGEST_KEY = b"edgenewton.sha256"
_DIGEST_LENGTH = 64
_ENTRY = (
    # ModelProto.metadata_props is field 14; its entries have a key (field 1) and a value (field 2).
    bytes([0x0A, len(_DIGEST_KEY), *_DIGEST_KEY, 0x12, _DIGEST_LENGTH])
)
_TAIL_HEAD = bytes([0x72, len(_ENTRY) + _DIGEST_LENGTH]) + _ENTRY
_TAIL_LENGTH = len(_TAIL_HEAD) + _DIGEST_LENGTH


def import_onnx(module: str) -> types.ModuleType:
    """Return a module of the extras `recognition` (onnxruntime) and `onnx`.

    Raises:
        ArtefactError: it is not installed.

    """
    import importlib

    extra = "recognition" if module == "onnxruntime" else "onnx"
    try:
        with needing("ONNX", extra):
            return importlib.import_module(module)
    except MissingExtraError as error:
        raise ArtefactError(str(error)) from None


def seal(body: bytes) -> bytes:
    """Return the bytes of an ONNX model with their digest appended."""
    return body + _TAIL_HEAD + hashlib.sha256(body).hexdigest().encode()


def read_onnx(path: Path) -> bytes:
    """Return the bytes of a model file that `export_onnx` wrote.

    Raises:
        ArtefactError: it is missing, damaged, or another ONNX model.

    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror or error}") from None
    body, tail = content[:-_TAIL_LENGTH], content[-_TAIL_LENGTH:]
    if not tail.startswith(_TAIL_HEAD):
        raise ArtefactError(f"{path} is not a model of EdgeNewton, or is damaged: its digest is not at its end")
    if hashlib.sha256(body).hexdigest().encode() != tail[len(_TAIL_HEAD) :]:
        raise ArtefactError(f"{path} is damaged: its content does not have the digest that was saved with it")
    return content


class OnnxEngine:
    """Runs the bytes of a model file in ONNX Runtime.

    Args:
        content: the bytes.
        device: the hardware that the model runs on: "cpu", "cuda" (or "cuda:1"), or "auto" for the first of CUDA and
            the CPU that ONNX Runtime can use.
        threads: that it may use; as many as torch may, or one for each core where there is no torch, unless given.

    Raises:
        ArtefactError: ONNX Runtime is not installed, refuses the model, or cannot use the device; or the model is of a
            newer release.

    """

    name = "onnx"

    def __init__(self, content: bytes, device: str = "cpu", threads: int | None = None) -> None:
        runtime = import_onnx("onnxruntime")
        providers = _providers(device, runtime.get_available_providers())
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or _usual_threads()
        options.inter_op_num_threads = 1
        # Threads that wait busily would take the processor from training.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(content, options, providers=providers)
        except Exception as error:  # ONNX Runtime's own exceptions have no common class
            raise ArtefactError(f"ONNX Runtime refuses the model: {error}") from None
        self.info = _read_info(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return probabilities: see `Engine`."""
        (probabilities,) = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(raw)})
        array: NDArray[np.float32] = probabilities
        return array


def _usual_threads() -> int:
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else len(os.sched_getaffinity(0))


def _providers(device: str, available: list[str]) -> list[Any]:
    """Return what ONNX Runtime is to run a model with, by the name of the hardware."""
    try:
        kind, _, number = check_device_name(device).partition(":")
    except ValueError as error:
        raise ArtefactError(str(error)) from None
    has_cuda = _CUDA in available
    if kind == "cpu" or (kind == AUTO and not has_cuda):
        return [_CPU]
    if kind == "mps" or not has_cuda:
        usable = "cpu and cuda" if has_cuda else "cpu; for cuda install the package 'onnxruntime-gpu'"
        raise ArtefactError(f"device {device!r}: ONNX Runtime cannot use it on this machine; it can use {usable}")
    return [(_CUDA, {"device_id": int(number or 0)}), _CPU]


def _read_info(metadata: dict[str, str]) -> ModelInfo:
    return ModelInfo.from_json(metadata.get(INFO_KEY, "{}"), FORMAT_VERSION)
