"""How soon the page for people can be used: in Debian's Chromium, with an empty cache, on the same machine.

A round is a browser session of its own, from asking for `/` until Generate can be pressed, by when the page has asked
the service which checkpoints there are. How long after the service is ready the page is there at all is told beside.
"""

import http.client
import shutil
import time
from pathlib import Path
from statistics import median

from playwright.sync_api import Browser, expect, sync_playwright

from benchmarks.outcome import Bar, Outcome, spread
from benchmarks.served import sd35_serve, served

MOST_S = 3.0
_WAIT_MS = 60_000
_POLL_S = 0.05
_ARGUMENTS = ["--no-sandbox", "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """The median of the rounds; the one before them, which may read from disk, is left out."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("chromium is needed: apt install chromium")
    with served(sd35_serve(checkpoint, ui="auto")) as server, sync_playwright() as playwright:
        loaded_s = _seconds_to_page(server.port)
        browser = playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        first_s, *samples_s = [_seconds_to_use(browser, server.port) for _ in range(rounds + 1)]
        browser.close()
    return Outcome(
        [Bar("the page, asked for to usable", median(samples_s), "s", "<=", MOST_S)],
        [
            f"{rounds} browser sessions: {spread(samples_s)}; the one before these {first_s:.3f} s",
            f"the page is there {loaded_s:.1f} s after the service is ready",
        ],
        {"usable_s": samples_s, "first_s": first_s, "loaded_s": loaded_s},
    )


def _seconds_to_page(port: int) -> float:
    """From when the service was seen to be ready until `/` leads to the page."""
    began_s = time.perf_counter()
    while _status(port) != http.client.TEMPORARY_REDIRECT:
        if time.perf_counter() - began_s > _WAIT_MS / 1000:
            raise SystemExit("the page is not there: is the extra `ui` installed?")
        time.sleep(_POLL_S)
    return time.perf_counter() - began_s


def _status(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/")
    status = connection.getresponse().status
    connection.close()
    return status


def _seconds_to_use(browser: Browser, port: int) -> float:
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        began_s = time.perf_counter()
        page.goto(f"http://127.0.0.1:{port}/")
        expect(page.get_by_role("button", name="Generate")).to_be_enabled(timeout=_WAIT_MS)
        return time.perf_counter() - began_s
