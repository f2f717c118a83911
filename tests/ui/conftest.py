"""A browser, a server with the user interface, and checks that neither connects to another host."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.support.browser import CHROMIUM, CHROMIUM_ARGUMENTS, TIMEOUT_MS, Watched
from tests.support.server_process import serving

# An audit hook that records every connection and DNS lookup of Python's sockets, which Gradio's telemetry would use.
WATCH = """
import os, sys
with open(os.environ["WATCHED"], "a") as file:
    print("recording", file=file)
def record(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        with open(os.environ["WATCHED"], "a") as file:
            print(event, arguments[1] if event == "socket.connect" else arguments[0], file=file)
sys.addaudithook(record)
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. Playwright's event loop runs meanwhile, so tests cannot run their own."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A server for all tests that do not change its settings."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "sitecustomize.py").write_text(WATCH)
    connections = folder / "connections"
    before = os.environ.get("PYTHONPATH")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), before])))
        patch.setenv("WATCHED", str(connections))
        with serving(folder / "stderr", "--ui", "auto", "--cache-dir", str(folder / "cache")) as served:
            yield Watched(served, connections)


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a page in a new browser session and waits until it is ready.

    At the end, check that no page has sent a request to another host or had a script error.
    """
    contexts: list[BrowserContext] = []
    pages: list[Page] = []
    requested: list[tuple[str, str]] = []
    errors: list[Exception] = []

    def open_page(address: str, context: BrowserContext | None = None, **options: Any) -> Page:
        if context is None:
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
            contexts.append(context)
        page = context.new_page()
        pages.append(page)
        page.set_default_timeout(TIMEOUT_MS)
        page.on("request", lambda request: requested.append((address, request.url)))
        page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108  Playwright sets attributes on its handlers
        page.goto(address)  # the page may reload itself while it is loading
        expect(page.get_by_role("button", name="Generate")).to_be_enabled(timeout=TIMEOUT_MS)
        return page

    yield open_page
    for each in (*pages, *contexts):
        each.close()
    foreign = [url for address, url in requested if not url.startswith((f"{address}/", "data:", "blob:"))]
    assert (foreign, errors) == ([], [])


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser session. After the first test, its cache has the page's scripts."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        yield context


@pytest.fixture
def page(watched: Watched, context: BrowserContext, new_page: Callable[..., Page]) -> Page:
    """A new page of the shared server."""
    return new_page(watched.address, context)
