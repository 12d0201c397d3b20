"""Headless Chromium, where the machine has it: `apt-get install chromium` (or .ci/run) brings it."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; apt-get install chromium")
SCREENSHOTS = Path("runs/screenshots").absolute()
"""Kept for people to look at."""
_OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


class Browser:
    """Opens pages, and keeps what went wrong in them."""

    def __init__(self, chromium) -> None:
        self._chromium = chromium
        self.problems: list[str] = []
        self.requests: list[str] = []

    def open(self, url: str, size: str, scheme: str = "light"):
        width, height = SIZES[size]
        is_phone = size == "phone"
        context = self._chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            is_mobile=is_phone,
            device_scale_factor=2 if is_phone else 1,
            reduced_motion="reduce",
        )
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(url)
        return page

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.problems.append(text)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium for the length of a `with` block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS)
        try:
            yield Browser(browser)
        finally:
            browser.close()


def screenshot(page, name: str) -> Path:
    """Keep a picture of a whole page."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    return path
