"""Keeps on disk what takes long to make: tensors, written whole or not at all, and made anew when damaged."""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from edgenewton.common.files import write_atomically
from edgenewton.common.sealed_file import (
    KEY,
    DamagedError,
    Kind,
    OtherKindError,
    blank_seal,
    fill,
    read_checked,
    tell_aside,
    tensors_metadata,
)
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

log = logging.getLogger(__name__)

ENVIRONMENT = "EDGENEWTON_CACHE"
"""Names the folder, instead of `edgenewton` in the user's cache folder (XDG_CACHE_HOME, by default ~/.cache)."""
_LOCK_S = 300
_DIGEST = "digest"
"""Of the tensors, in the metadata of what earlier releases kept."""


def cache_folder() -> Path:
    """Return the folder in which things are kept; it may not exist yet."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        return Path(chosen)
    # The XDG convention has relative paths ignored.
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "edgenewton"


def cache_path(name: str) -> Path:
    """Return the file in which tensors are kept under a name; it may not exist yet."""
    return cache_folder() / f"{name}.safetensors"


def kept(name: str) -> dict[str, Tensor] | None:
    """Return the tensors that are kept under a name, or None if there are none or they are damaged."""
    return _read(cache_path(name))


def keep(name: str, tensors: dict[str, Tensor]) -> None:
    """Keep tensors under a name, in place of those that are there.

    Raises:
        OSError: they cannot be written.

    """
    path = cache_path(name)
    try:
        write_atomically(path, fill(dump_tensors(tensors, {KEY: blank_seal(Kind.TASK_DATA)})))
    except SafetensorError as error:
        raise OSError(str(error)) from error


def cached(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors that are kept under a name; make and keep them when there are none.

    Of several processes that ask at once, one makes them and the others wait. A cache that cannot be written costs the
    time to make them, no more.

    Args:
        name: of the file, with a version that changes whenever `make` would return something else.
        make: returns the tensors.

    """
    path = cache_path(name)
    found = _read(path)
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=_LOCK_S):
            found = _read(path)
            if found is not None:
                return found
            made = make()
            _try_to_keep(name, made)
            return made
    except Timeout:
        log.warning("another process has kept %s.lock for %d s; %s is made without it", path, _LOCK_S, name)
    except OSError as error:
        log.warning("%s cannot be locked, and %s is made without it: %s", path, name, error)
    return make()


def _read(path: Path) -> dict[str, Tensor] | None:
    """Return what is in a file, or None if it is missing or damaged, which sets it aside."""
    try:
        return read_checked(path, Kind.TASK_DATA, _parse, is_told=False)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        tell_aside(path, error)
    except (OSError, OtherKindError) as error:
        log.warning("%s cannot be read and counts as missing: %s", path, error)
    return None


def _parse(data: bytes) -> dict[str, Tensor]:
    try:
        metadata, tensors = tensors_metadata(data), load_tensors(data)
    except SafetensorError as error:
        raise DamagedError(str(error)) from None
    if KEY not in metadata and metadata.get(_DIGEST) != _digest(tensors):
        raise DamagedError("its content does not have the digest that was saved with it")
    return tensors


def _try_to_keep(name: str, tensors: dict[str, Tensor]) -> None:
    try:
        keep(name, tensors)
    except OSError as error:
        log.warning("%s cannot be written and will be made anew the next time: %s", cache_path(name), error)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
