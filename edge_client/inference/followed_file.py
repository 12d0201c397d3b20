"""A model file that is replaced now and then, by a training that goes on: its new content comes to serve."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from edge_client.inference.errors import ArtefactError
from edge_client.inference.recognizer import Recognizer
from edge_client.tasks.errors import SampleError, TaskError

log = logging.getLogger(__name__)

_EVERY_S = 1.0


class FollowedFile:
    """Watches a file from now on, by its name: who replaces it renames another file to it.

    Args:
        path: of the file.
        every_s: seconds between two looks at it.

    """

    def __init__(self, path: Path, every_s: float = _EVERY_S) -> None:
        self.path = path
        self.version = 1
        """Number of the content that serves; that of now is the first."""
        self._every_s = every_s
        self._seen = self._look()

    async def follow(
        self, load: Callable[[Path], Recognizer], swap: Callable[[Recognizer, int], Awaitable[None]]
    ) -> None:
        """Let each new content serve until this is cancelled; one that cannot be used is named in the log.

        Args:
            load: reads the file, in a thread; raises ArtefactError or TaskError.
            swap: lets a recognizer serve, with the number of its version.

        """
        while True:
            await asyncio.sleep(self._every_s)
            seen = self._look()
            if seen in (None, self._seen):
                continue
            self._seen = seen
            try:
                recognizer = await asyncio.to_thread(load, self.path)
                await swap(recognizer, self.version + 1)
            except (ArtefactError, TaskError, SampleError) as error:
                log.error("the new content of %s does not serve, and what served goes on: %s", self.path, error)
            else:
                self.version += 1

    def _look(self) -> tuple[int, int, int] | None:
        """Return what changes when the file is replaced; None while there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
