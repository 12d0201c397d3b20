"""The dashboard's server, beside the exchange on the same event loop."""

import ssl

from edgenewton.common.http_protocol import HttpLimits
from edgenewton.common.http_server import HttpServer

from coordinator.dashboard.app import make_app
from coordinator.dashboard.feed import MAX_VIEWERS, Feed
from coordinator.telemetry.metrics import WatchedCoordinator


class DashboardServer:
    """Serves the page and the metrics of a coordinator. Use it on the coordinator's event loop.

    Args:
        coordinator: whose sessions are shown.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        tls: context that demands certificates of viewers; None for plaintext.

    """

    def __init__(
        self, coordinator: WatchedCoordinator, host: str, port: int, tls: ssl.SSLContext | None = None
    ) -> None:
        self._feed = Feed(coordinator)
        self._server = HttpServer(
            make_app(coordinator, self._feed, host),
            host,
            port,
            purpose="the page",
            tls=tls,
            limits=HttpLimits(max_connections=4 * MAX_VIEWERS, max_connections_per_client=2 * MAX_VIEWERS),
            drain_s=2,
        )

    @property
    def url(self) -> str:
        """Where the page is."""
        return self._server.url

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be listened on.

        """
        await self._server.start()

    async def stop(self) -> None:
        """End the feeds, and stop listening."""
        self._feed.close()
        await self._server.stop()
