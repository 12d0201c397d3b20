"""How the tasks `keywords` and `languages` decode recordings."""

import numpy as np
from numpy.typing import NDArray

from edge_client.tasks.audio import Waveform, label_in_title, loudest, waveform_of

KEYWORDS_RATE = 16_000
"""Samples per second that the front end of `keywords` expects; a sample is one second."""
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
LANGUAGES_RATE = 8_000
"""Samples per second of `languages`: those of the telephone; a sample is one second."""
LANGUAGES = ("English", "French", "Italian", "Russian", "Spanish")
FULL = 32_767


class KeywordsDecoder:
    """Decodes a recording of a word, of any sample rate."""

    def decode(self, sample: object) -> Waveform:
        """Return the second around the loudest part of a recording, float32 `[16000]`.

        Args:
            sample: path of a WAV file (any sample rate, PCM or float, any channels), its content as bytes, a
                `Recording`, or an array `[n]` of 16,000 samples per second.

        Raises:
            SampleError: it is none of these, damaged, silent or too long.

        """
        return loudest(waveform_of(sample, KEYWORDS_RATE, "a keyword"), KEYWORDS_RATE)

    def true_label(self, sample: object) -> str | None:
        """Return the label that a file carries as its title, as those of `KeywordsTask.save_sample` do."""
        return label_in_title(sample, KEYWORDS)


class LanguagesDecoder:
    """Decodes a recording of speech, of any sample rate."""

    def decode(self, sample: object) -> NDArray[np.int16]:
        """Return the second around the loudest part of a recording, int16 `[8000]`; one of a second as it is.

        Args:
            sample: path of a WAV file (any sample rate, PCM or float, any channels), its content as bytes, a
                `Recording`, or an array `[n]` of 8,000 samples per second.

        Raises:
            SampleError: it is none of these, damaged, silent or too long.

        """
        waveform = waveform_of(sample, LANGUAGES_RATE, "speech")
        return to_integers(waveform if len(waveform) == LANGUAGES_RATE else loudest(waveform, LANGUAGES_RATE))

    def true_label(self, sample: object) -> str | None:
        """Return the label that a file carries as its title, as those of `LanguagesTask.save_sample` do."""
        return label_in_title(sample, LANGUAGES)


def to_integers(waveform: Waveform) -> NDArray[np.int16]:
    """Return a waveform as 16-bit samples of full range."""
    peak = float(np.abs(waveform).max().clip(min=1e-9))
    return (waveform * (FULL / peak)).round().astype(np.int16)
