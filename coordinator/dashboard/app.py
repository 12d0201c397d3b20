"""The application: the page with its files, what it shows as JSON and as a live feed, and the metrics. Only reads."""

import time
from importlib import resources
from importlib.metadata import version

from edgenewton.common.addresses import is_loopback
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.dashboard.feed import Feed, TooManyViewersError
from coordinator.telemetry.metrics import WatchedCoordinator, make_registry

_ASSETS = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "chart.js": "text/javascript; charset=utf-8",
    "scale.js": "text/javascript; charset=utf-8",
    "format.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}


def make_app(coordinator: WatchedCoordinator, feed: Feed, host: str) -> FastAPI:
    """Return the application that shows a coordinator's sessions, for a server that listens on `host`."""
    app = FastAPI(
        title="EdgeNewton coordinator", version=version("edgenewton"), docs_url=None, redoc_url=None, openapi_url=None
    )
    registry = make_registry(coordinator)
    folder = resources.files(__package__) / "static"
    assets = {name: (folder / name).read_bytes() for name in _ASSETS}

    app.add_middleware(Guard, host=host)

    @app.get("/")
    async def page() -> Response:
        return Response(assets["index.html"], media_type=_ASSETS["index.html"])

    @app.get("/static/{name}")
    async def asset(name: str) -> Response:
        if name not in assets:
            raise HTTPException(404)
        return Response(assets[name], media_type=_ASSETS[name])

    @app.get("/api/state")
    async def state() -> Response:
        return JSONResponse({"version": version("edgenewton"), **feed.everything()})

    @app.get("/api/events")
    async def events(request: Request) -> Response:
        address = request.client.host if request.client is not None else ""
        try:
            feed.admit(address)
        except TooManyViewersError as error:
            return JSONResponse({"error": str(error)}, 503, {"Retry-After": "10"})
        return StreamingResponse(feed.follow(address), media_type="text/event-stream")

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "serving", "time_s": time.time()})

    return app


class Guard:
    """Gives every answer the headers that keep a browser from doing anything but show this page.

    On loopback it answers only to loopback's names: else a page of somebody else, whose name leads here, could read.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._is_local = is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if self._is_local and scope["type"] == "http" and not is_loopback(HTTPConnection(scope).url.hostname or ""):
            refusal = JSONResponse({"error": "the request is for another server; use this one's own address"}, 421)
            await refusal(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)
