"""What the wheel says of itself: the README, with links that work where it stands alone."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")


def with_whole_links(text: str, repository: str) -> str:
    """Return Markdown whose links to files of the repository are whole addresses, those of pictures to their bytes."""

    def whole(found: "re.Match[str]") -> str:
        mark, words, target = found.groups()
        return f"{mark}[{words}]({repository}/{'raw' if mark else 'blob'}/main/{target})"

    return _LINK.sub(whole, text)


class CustomMetadataHook(MetadataHookInterface):
    """Gives the distribution its README."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata["urls"]["Source"]
        metadata["readme"] = {"content-type": "text/markdown", "text": with_whole_links(text, repository)}
