"""Models that come to serve while their training goes on: one after another, and the newest one if several wait."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from edge_client.daemon.messages import Published
from edge_client.inference import Artefact, ArtefactError
from edge_client.inference.accuracy_gate import AccuracyGate
from edge_client.inference.store import StoreError
from edge_client.tasks import SampleError, TaskError

log = logging.getLogger(__name__)


class Publication:
    """Lets what one training publishes serve; the training does not wait for it. Use it on one running event loop.

    Args:
        gate: which models may serve; None for all.
        promote: lets a model serve, with its accuracy.

    """

    def __init__(
        self, gate: AccuracyGate | None, promote: Callable[[Artefact, float | None], Awaitable[object]]
    ) -> None:
        self._gate = gate
        self._promote = promote
        self._newest: Published | None = None
        self._serving: Published | None = None
        self._work: asyncio.Task[None] | None = None

    def take(self, published: Published) -> None:
        """Let a model serve as soon as the one before it does."""
        self._newest = published
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._promote_newest(), name="publication")

    async def end(self) -> None:
        """Wait until the last model serves."""
        if self._work is not None:
            await asyncio.wait((self._work,))

    def accuracy_of_serving(self, first: float | None) -> float | None:
        """Return the accuracy of the model that serves.

        Args:
            first: of the one that served when the training began.

        """
        return first if self._serving is None else self._serving.accuracy

    async def _promote_newest(self) -> None:
        while self._newest is not None:
            published, self._newest = self._newest, None
            try:
                await self._let_serve(published)
            except (ArtefactError, TaskError, SampleError, StoreError) as error:
                log.warning("the model of step %d does not serve: %s", published.step, error)
            except Exception:  # what was trained must not be lost with it
                log.exception("the model of step %d does not serve", published.step)

    async def _let_serve(self, published: Published) -> None:
        if self._gate is not None:
            serving = self.accuracy_of_serving(published.serving_accuracy)
            refusal = self._gate.refusal(published.accuracy, serving)
            if refusal is not None:
                log.warning("the model of step %d does not serve: %s", published.step, refusal)
                return
        artefact = await asyncio.to_thread(Artefact.load, published.model)
        await self._promote(artefact, published.accuracy)
        self._serving = published
