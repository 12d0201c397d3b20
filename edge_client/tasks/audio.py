"""Reads recordings that come from outside, and says in a sentence what is wrong with them."""

import math
import stat
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from edge_client.tasks.errors import SampleError

Waveform = NDArray[np.float32]
"""Mono samples, `[n]`, of which -1 to 1 is the full range."""

MAX_SECONDS = 30
"""Longer recordings are refused before they are decoded."""
MAX_CHANNELS = 8
_SILENCE = 1e-9
"""What rounding may leave of a constant, in parts of it."""
SAMPLE_RATES = range(4_000, 192_001)
"""Samples per second that a recording may have."""


@dataclass(frozen=True, eq=False)
class Recording:
    """Sound as samples in memory.

    Args:
        samples: `[n]` or `[n, channels]`; signed integers or uint8 as in a WAV file, or floats from -1 to 1.
        rate: samples per second.

    """

    samples: NDArray[Any]
    rate: int


def read_sound(source: str | Path | bytes, name: str | None = None) -> Recording:
    """Return what is in a sound file: WAV (PCM of 8 to 32 bits, or float), or another format that libsndfile reads.

    Args:
        source: path of the file, or its content.
        name: what errors call it; by default its path.

    Returns:
        Samples as float32 `[n, channels]`, from -1 to 1.

    Raises:
        SampleError: the file is missing, empty, damaged, too long or no sound file.

    """
    if isinstance(source, bytes):
        return _read(BytesIO(source), len(source), name or "the recording")
    path = Path(source)
    name = name or str(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            raise SampleError(f"{name} is not a file")
        with path.open("rb") as file:
            return _read(file, status.st_size, name)
    except FileNotFoundError:
        raise SampleError(f"{name} does not exist") from None
    except OSError as error:
        raise SampleError(f"{name} cannot be read: {error.strerror or error}") from None


def waveform_of(sample: object, rate: int, kind: str) -> Waveform:
    """Return a recording of any form as one channel at a sample rate, float32 `[n]`.

    Args:
        sample: path of a sound file, its content as bytes, a `Recording`, or an array `[n]` at that rate.
        rate: samples per second.
        kind: what it is to be, for the error, such as "a keyword".

    Raises:
        SampleError: it is none of these, damaged or too long.

    """
    name = "the recording"
    if isinstance(sample, (str, Path)):
        name = str(sample)
        recording = read_sound(sample)
    elif isinstance(sample, bytes):
        recording = read_sound(sample)
    elif isinstance(sample, Recording):
        recording = sample
    elif isinstance(sample, np.ndarray):
        recording = Recording(sample, rate)
    else:
        raise SampleError(f"{kind} is a path, bytes, a Recording or an array, not {type(sample).__name__}")
    return resample(recording, rate, name)


def label_in_title(sample: object, labels: Collection[str]) -> str | None:
    """Return the label that a sound file carries as its title, if it carries one."""
    title = read_title(sample) if isinstance(sample, (str, Path)) else None
    return title if title in labels else None


def read_title(path: str | Path) -> str | None:
    """Return the title that a sound file carries, or None."""
    try:
        with Path(path).open("rb") as file, soundfile.SoundFile(file) as sound:
            return sound.title or None
    except (OSError, soundfile.SoundFileError, TypeError, ValueError):
        return None


def write_wav(path: Path, recording: Recording, title: str) -> None:
    """Write a recording as a WAV file of 16-bit PCM that carries a title."""
    samples = recording.samples
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(
        path, "w", samplerate=recording.rate, channels=channels, subtype="PCM_16", format="WAV"
    ) as sound:
        sound.title = title
        sound.write(samples)


def resample(recording: Recording, rate: int, name: str = "the recording") -> Waveform:
    """Return a recording in mono at another sample rate, without its constant part, and with a peak of about 1.

    Args:
        recording: what is converted; channels are averaged.
        rate: samples per second that are wanted.
        name: what errors call the recording.

    Raises:
        SampleError: it has no samples, values that are not finite, or an impossible rate or shape, or it is silent.

    """
    _check(recording, name)
    values = _scale(recording.samples, name)
    peak = np.abs(values).max()
    if not np.isfinite(peak):
        raise SampleError(f"{name} holds values that are infinite or NaN")
    mono = (values / (peak or 1)).reshape(len(values), -1).mean(axis=1)
    mono -= mono.mean()
    peak = np.abs(mono).max()
    if peak < _SILENCE:
        raise SampleError(f"{name} is silent: its samples are all alike")
    divisor = math.gcd(rate, recording.rate)
    # With equal rates this returns its input.
    resampled = resample_poly(mono / peak, rate // divisor, recording.rate // divisor)
    return np.asarray(resampled, dtype=np.float32)


def loudest(waveform: Waveform, length: int) -> Waveform:
    """Return `length` samples around the loudest part of a waveform, padded with zeros where it has none.

    Of all stretches of `length` samples the one with the most energy (the first of several) is found, then the result
    is centred on the mean position of the energy in it. So silence before or after a word does not move it.
    """
    energy = waveform.astype(np.float64) ** 2
    sums = np.concatenate([[0.0], np.cumsum(energy)])
    first = int(np.argmax(sums[length:] - sums[:-length])) if len(waveform) > length else 0
    part = energy[first : first + length]
    centre = first + round(float(part @ np.arange(len(part)) / max(part.sum(), np.finfo(np.float64).tiny)))
    start = centre - length // 2
    result = np.zeros(length, np.float32)
    kept = waveform[max(start, 0) : start + length]
    offset = max(-start, 0)
    result[offset : offset + len(kept)] = kept
    return result


def _read(file: BinaryIO, size: int, name: str) -> Recording:
    if size == 0:
        raise SampleError(f"{name} is empty; a sound file was expected")
    try:
        with soundfile.SoundFile(file) as sound:
            _check_extent(sound.frames, sound.samplerate, sound.channels, name)
            return Recording(sound.read(dtype="float32", always_2d=True), sound.samplerate)
    except SampleError:
        raise
    except (soundfile.SoundFileError, TypeError, ValueError, MemoryError):
        raise SampleError(f"{name} is not a sound file that can be read (WAV, FLAC, ...), or is damaged") from None


def _check(recording: Recording, name: str) -> None:
    samples = recording.samples
    if samples.ndim not in (1, 2):
        raise SampleError(f"{name} has shape {list(samples.shape)}; [samples] or [samples, channels] was expected")
    _check_extent(len(samples), recording.rate, 1 if samples.ndim == 1 else samples.shape[1], name)


def _check_extent(frames: int, rate: int, channels: int, name: str) -> None:
    if not isinstance(rate, (int, np.integer)):
        raise SampleError(f"{name} has the sample rate {rate!r}, which is no whole number")
    if rate not in SAMPLE_RATES:
        raise SampleError(
            f"{name} has {rate:,} samples per second; {SAMPLE_RATES[0]:,} to {SAMPLE_RATES[-1]:,} were expected"
        )
    if frames == 0:
        raise SampleError(f"{name} has no samples")
    if not 1 <= channels <= MAX_CHANNELS:
        raise SampleError(f"{name} has {channels} channels; 1 to {MAX_CHANNELS} were expected")
    if frames > MAX_SECONDS * rate:
        raise SampleError(f"{name} lasts {frames / rate:,.1f} s; {MAX_SECONDS} s are the limit")


def _scale(samples: NDArray[Any], name: str) -> NDArray[np.float64]:
    """Return samples of any kind as floats from -1 to 1."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float64)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float64) - 128) / 128
    if samples.dtype.kind == "i":
        return samples / -float(np.iinfo(samples.dtype).min)
    raise SampleError(f"{name} holds {samples.dtype}, not signed integers, uint8 or floats")
