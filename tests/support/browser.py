"""The user interface in Chromium: the servers, and a person's actions on the page."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import Locator, Page, expect

from tests.support.server_process import SD35, Served

CHROMIUM = shutil.which("chromium")
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
]
TIMEOUT_MS = 60_000
EXIT_TIMEOUT_S = 10  # less than the 30 s for which an open event stream of the browser would delay the exit


class Watched(NamedTuple):
    """A server with the user interface, and the file in which its process records its connections."""

    served: Served
    connections: Path

    @property
    def address(self) -> str:
        """The server's URL."""
        return f"http://127.0.0.1:{self.served.port}"

    def get(self, path: str, **headers: str) -> bytes:
        """Return the body of a response of the service."""
        connection = self.served.connect()
        connection.request("GET", path, headers=headers)
        content: bytes = connection.getresponse().read()
        connection.close()
        return content

    def jobs(self) -> list[dict[str, Any]]:
        """Return the service's jobs, newest first."""
        found: list[dict[str, Any]] = json.loads(self.get("/v1/jobs"))["data"]
        return found


@contextmanager
def page_of(server: str, cache: Path) -> Iterator[str]:
    """Run `sd35 ui` in a process and yield its URL."""
    command = [*SD35, "ui", "--server", server, "--port", "0", "--cache-dir", str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout
            found = re.match(r"Ready: (http://127.0.0.1:\d+) ", process.stdout.readline())
            assert found
            yield found[1]
            process.terminate()
            assert process.wait(EXIT_TIMEOUT_S) == 0
        finally:
            process.kill()


def fill(page: Page, prompt: str, *, steps: int = 4, count: int = 1) -> None:
    """Fill in the form."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    number_field(page, "Steps").fill(str(steps))
    number_field(page, "Number of images").fill(str(count))


def number_field(page: Page, label: str) -> Locator:
    """Return the number field of a slider."""
    return page.get_by_label(f"number input for {label}")


def generate(page: Page) -> None:
    """Click "Generate" and wait until the image is shown."""
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#canvas .image img")).to_be_visible()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
