"""A coordinator with its page, in a thread."""

import httpx
from edgenewton.common.loop_thread import LoopThread
from prometheus_client.parser import text_string_to_metric_families

from coordinator.dashboard.server import DashboardServer
from coordinator.serving.server import CoordinatorServer
from coordinator.session.settings import SessionSettings


class Served:
    """A coordinator with its page, in a thread."""

    def __init__(self, tls=None) -> None:
        self.tls = tls
        self.loop = LoopThread("served")
        self.loop.call(self._start(), 20)
        self.url = self.page.url

    async def _start(self):
        self.server = CoordinatorServer()
        self.page = DashboardServer(self.server.directory, "127.0.0.1", 0, self.tls)
        await self.page.start()
        await self.server.start()

    def create(self, name="s", **settings):
        async def create():
            self.server.directory.create(name, SessionSettings(**settings))

        self.loop.call(create(), 20)

    async def _stop(self):
        await self.server.stop("over")
        await self.page.stop()

    def stop(self):
        self.loop.call(self._stop(), 20)
        self.loop.stop()

    def session(self, name="s"):
        told = httpx.get(f"{self.url}/api/state").json()
        return next(session for session in told["sessions"] if session["name"] == name)

    def metrics(self):
        """Return the samples of the metrics by name and labels."""
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
        return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}
