"""Speaks texts with espeak-ng, which the extra `speech` brings."""

import importlib.util
import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from edge_client.tasks import espeak
from edge_client.tasks.audio import Recording
from edge_client.tasks.task import TaskError

_START_S = 30
_UTTERANCE_S = 0.5
"""A hundred times what a word takes on a slow machine."""


class SpeechError(TaskError):
    """A text cannot be spoken; the text says why and what to do."""


@dataclass(frozen=True)
class Utterance:
    """A text and how it is to be spoken."""

    text: str
    voice: str
    """A language and perhaps a variant of espeak-ng, such as "en-US+f3"."""
    pitch: int = 50
    """0 to 99."""
    rate: int = 175
    """Words per minute, from 80."""


def speak(utterances: Sequence[Utterance]) -> list[Recording]:
    """Return a recording of each text: int16 samples at espeak-ng's own rate.

    The same texts in the same order give the same samples.

    Raises:
        SpeechError: espeak-ng is not installed, lacks a voice, or fails.

    """
    if not _is_installed():
        raise SpeechError("speaking needs espeak-ng: pip install edgenewton[speech]")
    try:
        process = subprocess.run(
            # -P: the folder of the script must not shadow other modules.
            [sys.executable, "-P", espeak.__file__],
            input=json.dumps([asdict(utterance) for utterance in utterances]).encode(),
            capture_output=True,
            timeout=_START_S + _UTTERANCE_S * len(utterances),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SpeechError(f"espeak-ng did not speak {len(utterances)} texts within {error.timeout:.0f} s") from None
    except OSError as error:
        raise SpeechError(f"espeak-ng cannot be started with {sys.executable}: {error}") from None
    if process.returncode != 0:
        lines = process.stderr.decode(errors="replace").strip().splitlines()
        raise SpeechError(lines[-1] if lines else f"espeak-ng ended with status {process.returncode}")
    try:
        recordings = _unpack(process.stdout)
    except (struct.error, ValueError):
        raise SpeechError("espeak-ng answered something that is no sound") from None
    if len(recordings) != len(utterances):
        raise SpeechError(f"espeak-ng spoke {len(recordings)} of {len(utterances)} texts")
    return recordings


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("espeakng_loader") is not None
    except ValueError:  # the name is bound to something that is no module
        return False


def _unpack(stream: bytes) -> list[Recording]:
    (rate,) = struct.unpack_from("<I", stream)
    recordings, position = [], 4
    while position < len(stream):
        (count,) = struct.unpack_from("<I", stream, position)
        recordings.append(Recording(np.frombuffer(stream, "<i2", count, position + 4).astype(np.int16), rate))
        position += 4 + 2 * count
    return recordings
