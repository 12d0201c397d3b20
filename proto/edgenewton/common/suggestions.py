"""What somebody may have meant who misspelt a name."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches


def suggestion(name: str, known: Collection[str], also_called: Mapping[str, str] | None = None) -> str:
    """Return a question to put behind a message, such as "; did you mean 'lr'?"; empty if nothing is near.

    Args:
        name: as it was written.
        known: the names that there are.
        also_called: other words for some of them, such as those of other software.

    """
    words = dict.fromkeys(known) | dict.fromkeys(also_called or ())
    by_folded = {word.casefold(): word for word in words}
    near = (by_folded[match] for match in get_close_matches(name.casefold(), by_folded, n=3))
    meant = list(dict.fromkeys((also_called or {}).get(word, word) for word in near))
    return f"; did you mean {' or '.join(map(repr, meant))}?" if meant else ""
