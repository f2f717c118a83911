"""`sd35 serve` as a child process."""

import http.client
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

TIMEOUT_S = 120
SD35 = [sys.executable, "-c", "from sd35.cli import main; main()"]
JSON = {"content-type": "application/json"}


class Served(NamedTuple):
    """A server process that is ready, and its port. Its stdout was read up to the line `Ready: ...`."""

    process: subprocess.Popen[str]
    port: int

    def connect(self) -> http.client.HTTPConnection:
        """Open a new connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)


@contextmanager
def serving(log: Path, *arguments: str) -> Iterator[Served]:
    """Start a server on a free port and wait until it is ready.

    It logs JSON to `log`, and stores its data in the same folder. The user interface is off, unless `arguments`
    turn it on.
    """
    defaults = ("--data-dir", str(log.parent / "data"), "--ui", "off")
    command = [*SD35, "serve", "--port", "0", "--log-format", "json", *defaults, *arguments]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            assert process.stdout
            lines = [process.stdout.readline()]
            while lines[-1] and not lines[-1].startswith("Ready: "):
                lines.append(process.stdout.readline())
            found = re.match(r"Ready: http://127.0.0.1:(\d+) ", lines[-1])
            assert found, "".join(lines) + log.read_text()
            yield Served(process, int(found[1]))
        finally:
            process.kill()
