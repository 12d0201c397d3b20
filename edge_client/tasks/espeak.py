"""Binds espeak-ng, and as a script speaks what it is told on standard input.

It runs as a process of its own (`edge_client.tasks.speech` starts it): the library's noise generator cannot be seeded,
so that only a fresh process speaks the same texts in the same way again. It therefore imports the least.

Input: a JSON array of objects with `text`, `voice`, `pitch` (0 to 99) and `rate` (words per minute). Output: the
sample rate as little-endian uint32, then for each text the number of samples as uint32 and the samples as int16.
"""

import ctypes
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SYNCHRONOUS = 2
"""`espeak_AUDIO_OUTPUT`: `espeak_Synth` returns when all samples went to the callback."""
_DO_NOT_EXIT = 0x8000
_CHARS_UTF8 = 1
_POSITION_CHARACTER = 1
_RATE, _PITCH = 1, 3
"""`espeak_PARAMETER`."""

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The library, which is one per process.

    Args:
        library: path of the shared library.
        data: path of the folder `espeak-ng-data`.

    Raises:
        ValueError: the library does not find its data.

    """

    def __init__(self, library: str, data: str) -> None:
        self._library = ctypes.CDLL(library)
        self._variants = Path(data) / "voices" / "!v"
        self._pieces: list[bytes] = []
        self.sample_rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DO_NOT_EXIT)
        if self.sample_rate <= 0:
            raise ValueError(f"espeak-ng cannot use its data in {data}")
        # The library keeps only the address, so the callback must live as long as this object.
        self._callback: Callable[..., Any] = _Callback(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: str, pitch: int, rate: int) -> bytes:
        """Return a spoken text as mono samples, int16 in the machine's byte order.

        Args:
            text: what is spoken.
            voice: a language and perhaps a variant, such as "en-US+f3".
            pitch: 0 to 99.
            rate: words per minute, from 80.

        Raises:
            ValueError: the voice is unknown or nothing is spoken.

        """
        variant = voice.partition("+")[2]
        # The library takes a variant that it does not know for none.
        is_known = not variant or (self._variants / variant).is_file()
        if not is_known or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        self._library.espeak_SetParameter(_RATE, rate, 0)
        self._pieces.clear()
        coded = text.encode()
        status = self._library.espeak_Synth(
            coded, ctypes.c_size_t(len(coded) + 1), 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        samples = b"".join(self._pieces)
        if status != 0 or not samples.strip(b"\0"):
            raise ValueError(f"espeak-ng cannot speak {text!r} with voice {voice!r} (status {status})")
        return samples

    def _collect(self, samples: int | None, count: int, events: int | None) -> int:  # noqa: ARG002
        if samples and count > 0:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        return 0


def main() -> None:
    """Speak the texts of standard input."""
    import espeakng_loader

    utterances = json.load(sys.stdin)
    try:
        espeak = Espeak(espeakng_loader.get_library_path(), espeakng_loader.get_data_path())
        sys.stdout.buffer.write(struct.pack("<I", espeak.sample_rate))
        for utterance in utterances:
            samples = espeak.speak(**utterance)
            if sys.byteorder == "big":
                swapped = bytearray(samples)
                swapped[0::2], swapped[1::2] = samples[1::2], samples[0::2]
                samples = bytes(swapped)
            sys.stdout.buffer.write(struct.pack("<I", len(samples) // 2) + samples)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
