"""How the task `text` decodes texts."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_client.tasks.errors import SampleError

PLACES = 48
"""Characters that the model sees."""
ALPHABET = " etoanisrhl\nducmygfp.wb,-vk\"TI'ASWC:MBDxELHPNORGF1j?)(!YJz0qU;2K9358V4*7_6=X/Q[]>#`Z<&@$+^\\~%|{}"
"""What there is, the common ones first."""
MAX_BYTES = 16_000_000
"""Longer texts are refused."""
_OVERSTRIKE = re.compile(".\x08")
"""What a printer would have printed another character upon."""
_PLACE_OF = {character: place for place, character in enumerate(ALPHABET)}


def to_tokens(text: str) -> NDArray[np.uint8]:
    """Return a text as places in the alphabet, uint8; tabs are spaces, and what the alphabet lacks is left out."""
    spaced = _OVERSTRIKE.sub("", text).expandtabs(4)
    return np.array([_PLACE_OF[character] for character in spaced if character in _PLACE_OF], dtype=np.uint8)


class TextDecoder:
    """Decodes the end of a text."""

    def decode(self, sample: object) -> NDArray[np.int64]:
        """Return the last 48 characters of a text as places in the alphabet, int64 `[48]`; newlines before a short one.

        Args:
            sample: path of a text file (UTF-8), or its content as bytes.

        Raises:
            SampleError: it is neither, too long, no text, or has no character of the alphabet.

        """
        if isinstance(sample, (str, Path)):
            name, content = str(sample), _read(Path(sample))
        elif isinstance(sample, bytes):
            name, content = "the text", sample
        else:
            raise SampleError(f"a text is a path or bytes, not {type(sample).__name__}")
        try:
            tokens = to_tokens(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise SampleError(f"{name} is no text in UTF-8: {error}") from None
        if not len(tokens):
            raise SampleError(f"{name} is empty, or has no character that the model knows")
        padded = np.full(PLACES, _PLACE_OF["\n"], dtype=np.int64)
        kept = tokens[-PLACES:]
        padded[PLACES - len(kept) :] = kept
        return padded

    def true_label(self, sample: object) -> str | None:  # noqa: ARG002
        """Return None: a text does not tell what follows it."""
        return None


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SampleError(f"{path} has more than {MAX_BYTES:,} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise SampleError(f"{path} does not exist") from None
    except OSError as error:
        raise SampleError(f"{path} cannot be read: {error.strerror or error}") from None
