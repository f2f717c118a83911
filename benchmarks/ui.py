"""Time until the user interface can be used, in Chromium with an empty cache on the same machine.

Each round is a new browser session. The time ends when the button Generate is enabled, after the page has fetched the
list of checkpoints. A note says how long after the service the user interface is ready.
"""

import shutil
import time
from pathlib import Path
from statistics import median

import httpx2
from playwright.sync_api import Browser, expect, sync_playwright

from benchmarks.outcome import Bar, CannotRun, Outcome, spread
from benchmarks.processes import running
from sd35.bench.server import serve_command

MAX_S = 3.0
_WAIT_MS = 60_000
_POLL_S = 0.05
_ARGUMENTS = ["--no-sandbox", "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """Measure each round in a new session. The first session does not count, because it may read from disk."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise CannotRun("Chromium is not installed; install it with: apt install chromium")
    command = serve_command(["--ui", "auto", "--checkpoint", str(checkpoint)])
    with running(command) as target, sync_playwright() as playwright:
        url = target.server.url
        loaded_s = _seconds_to_load(url)
        browser = playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        first_s, *samples_s = [_seconds_to_use(browser, url) for _ in range(rounds + 1)]
        browser.close()
    return Outcome(
        [Bar("user interface, request to usable", median(samples_s), "s", "<=", MAX_S)],
        [
            f"{rounds} browser sessions: {spread(samples_s)}; the session before these {first_s:.3f} s",
            f"the user interface is loaded {loaded_s:.1f} s after the service is ready",
        ],
        {"usable_s": samples_s, "first_s": first_s, "loaded_s": loaded_s},
    )


def _seconds_to_load(url: str) -> float:
    """Return the seconds until `/` redirects to the user interface."""
    start_s = time.perf_counter()
    while httpx2.get(f"{url}/", trust_env=False).status_code != httpx2.codes.TEMPORARY_REDIRECT:
        if time.perf_counter() - start_s > _WAIT_MS / 1000:
            raise CannotRun("the service has no user interface; install it with: pip install 'sd35-fp8-mirror[ui]'")
        time.sleep(_POLL_S)
    return time.perf_counter() - start_s


def _seconds_to_use(browser: Browser, url: str) -> float:
    """Open the user interface in a new session. Returns the seconds until its button Generate is enabled."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        start_s = time.perf_counter()
        page.goto(f"{url}/")
        expect(page.get_by_role("button", name="Generate")).to_be_enabled(timeout=_WAIT_MS)
        return time.perf_counter() - start_s
