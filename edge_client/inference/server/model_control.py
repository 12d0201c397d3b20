"""What clients may do with the model repository: see what is in it, load a model, unload it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_client.inference.errors import (
    ArtefactError,
    BadRequestError,
    NotAllowedError,
    OverloadedError,
    RequestError,
    UnknownModelError,
)
from edge_client.inference.recognizer import Recognizer
from edge_client.inference.repository import ModelRepository, RepositoryError, StoredModel
from edge_client.inference.server.parameters import unknown_parameter
from edge_client.inference.server.service import InferenceService
from edge_client.tasks import SampleError, TaskError

log = logging.getLogger(__name__)

READY, UNAVAILABLE = "READY", "UNAVAILABLE"
"""States of a model."""
_DRAIN_S = 10.0
"""Seconds that the requests may take which wait for a model that is unloaded."""


@dataclass(frozen=True)
class IndexEntry:
    """A model, loaded or not."""

    name: str
    version: str
    state: str
    reason: str
    """Why it is in that state, or why a newer version could not be loaded; empty if there is nothing to say."""


@dataclass(frozen=True)
class LoadingRules:
    """Which models clients may load, and what loads them."""

    repository: ModelRepository
    load: Callable[[Path], Recognizer]
    """Raises ArtefactError or TaskError."""
    max_models: int = 8
    """Of the repository, that are loaded at the same time."""


class ModelControl:
    """Loads and unloads models of a repository, one at a time. Use it on one running event loop.

    Args:
        service: answers for the models.
        rules: which models may be loaded; None for none.

    """

    def __init__(self, service: InferenceService, rules: LoadingRules | None = None) -> None:
        self._service = service
        self._rules = rules
        self._change: asyncio.Task[None] | None = None
        self._reasons: dict[str, str] = {}
        """Why models of the repository are not loaded, or not anew."""

    async def index(self, *, is_ready: bool = False) -> list[IndexEntry]:
        """Return the models that are loaded, and those that could be.

        Args:
            is_ready: whether only those are wanted that answer.

        Raises:
            RequestError: the repository cannot be read.

        """
        entries = []
        for model in self._service.models:
            if model.serving is None:
                entry = IndexEntry(model.name, "", UNAVAILABLE, "it has no version yet")
            else:
                entry = IndexEntry(model.name, str(model.serving.version), READY, self._reasons.get(model.name, ""))
            entries.append(entry)
        known = {entry.name for entry in entries}
        for stored in (await self._stored()).values():
            if stored.name not in known:
                reason = self._reasons.get(stored.name, "not loaded")
                entries.append(IndexEntry(stored.name, str(stored.version), UNAVAILABLE, reason))
        return [entry for entry in entries if entry.state == READY or not is_ready]

    async def load(self, model: str, parameters: Mapping[str, object]) -> None:
        """Let the newest version of a model in the repository serve; one that serves goes on until then.

        Args:
            model: its name.
            parameters: of the request; there are none.

        Raises:
            RequestError: it is not allowed, there is no such model, it cannot be used, or another one is being loaded.

        """
        rules = self._allowed(model, "loaded")
        for name in parameters:
            raise BadRequestError(
                f"parameter {name[:80]!r} is refused: a model is loaded as it is in the repository; leave it out"
            )
        stored = (await self._stored()).get(model)
        if stored is None:
            raise UnknownModelError(f"model {model[:128]!r} is not in the repository; its index tells what is")
        await self._alone(self._load(rules, stored))

    async def unload(self, model: str, parameters: Mapping[str, object]) -> None:
        """Answer a model's requests that wait, and no more.

        Args:
            model: its name.
            parameters: of the request: `unload_dependents`, which no model has.

        Raises:
            RequestError: it is not allowed, no such model is loaded, or another one is being loaded.

        """
        self._allowed(model, "unloaded")
        for name, value in parameters.items():
            if name != "unload_dependents":
                raise unknown_parameter(name, ("unload_dependents",))
            if not isinstance(value, bool):
                raise BadRequestError("parameter 'unload_dependents' must be true or false")
        self._service.find(model)
        await self._alone(self._unload(model))

    def _allowed(self, model: str, what: str) -> LoadingRules:
        if self._rules is None:
            raise NotAllowedError(f"no model can be {what} by clients: the operator has named no model repository")
        if model == self._service.model:
            raise NotAllowedError(f"model {model!r} is the one that the operator lets serve; it cannot be {what}")
        return self._rules

    async def _stored(self) -> dict[str, StoredModel]:
        if self._rules is None:
            return {}
        try:
            return await asyncio.to_thread(self._rules.repository.models)
        except RepositoryError as error:
            log.error("%s", error)
            raise RequestError("the model repository cannot be read; the server's log says why") from None

    async def _alone(self, change: Coroutine[Any, Any, None]) -> None:
        """Wait for a change, which goes on if the client hangs up; there is one at a time."""
        if self._change is not None and not self._change.done():
            change.close()
            raise OverloadedError("another model is being loaded or unloaded; try again later")
        self._change = asyncio.create_task(change, name="model control")
        await asyncio.shield(self._change)

    async def _load(self, rules: LoadingRules, stored: StoredModel) -> None:
        name = stored.name
        loaded = {model.name for model in self._service.models} - {self._service.model}
        if name not in loaded and len(loaded) >= rules.max_models:
            raise OverloadedError(f"{len(loaded)} models are loaded, which is the limit; unload one first")
        try:
            recognizer = await asyncio.to_thread(rules.load, stored.path)
            await self._service.swap(recognizer, stored.version, name)
        except (ArtefactError, TaskError, SampleError) as error:
            # The text for clients names the model and not the operator's folders.
            told = str(error).replace(str(stored.path), f"model {name!r}")
            self._reasons[name] = f"version {stored.version} cannot be loaded: {told}"
            log.error("version %d of %r cannot be loaded: %s", stored.version, name, error)
            raise BadRequestError(self._reasons[name]) from None
        self._reasons.pop(name, None)

    async def _unload(self, model: str) -> None:
        await self._service.withdraw(model, _DRAIN_S)
        self._reasons[model] = "unloaded"
