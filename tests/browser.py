"""The system's Chromium, with pages that fail on any request that would leave this machine.

`pytest_plugins = ["tests.browser"]` brings the fixtures `browser` and `offline_page`, whose calls open pages:
`with offline_page(width=390) as page: page.goto(file.as_uri())`. Import no more than types from here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

    OfflinePage = Callable[..., AbstractContextManager[Page]]

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A running Chromium without a window."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium is installed (looked for {', '.join(NAMES)})")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with sync_api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def offline_page(browser: Browser) -> OfflinePage:
    """Opens pages, see `_offline_page`."""
    return partial(_offline_page, browser)


@contextmanager
def _offline_page(
    browser: Browser, *, width: int = 1280, height: int = 900, dark: bool = False, refused: int = 0
) -> Iterator[Page]:
    """A page of its own cookies; at its end the test fails where it asked for anything from elsewhere, or had errors.

    Args:
        browser: runs the page.
        width, height: of the window, in pixels.
        dark: the reader prefers dark colours.
        refused: an HTTP status that is expected, and no error.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    problems: list[str] = []

    def decide(route: Route) -> None:
        address = urlsplit(route.request.url)
        if address.scheme in ("file", "data", "blob", "about") or address.hostname in LOOPBACK:
            route.continue_()
        else:
            problems.append(f"the page asked for {route.request.url}")
            route.abort()

    context.route("**/*", decide)
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(f"an error on the page: {error}"))
    page.on(
        "console",
        lambda said: (
            problems.append(f"the console says: {said.text}")
            if said.type == "error" and not (refused and f"status of {refused}" in said.text)
            else None
        ),
    )
    try:
        yield page
    finally:
        context.close()
    assert not problems, "\n".join(problems)
