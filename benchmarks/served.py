"""A server in a process of its own, its metrics, and the memory it has."""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.cold_start import wait_until_ready
from benchmarks.processes import ROOT, clean_environment
from benchmarks.wire import Client
from sd35.bench.server import free_port, parse_metrics, stop_process

_SAMPLE_S = 0.5


class Server(NamedTuple):
    """A server that is ready."""

    port: int
    process: subprocess.Popen[Any]


@contextmanager
def served(command: Sequence[str], variables: dict[str, str] | None = None) -> Iterator[Server]:
    """A server that is ready; `--port` and a free one are added to its command."""
    port = free_port()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=ROOT,
            env={**clean_environment(), **(variables or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            assert wait_until_ready(port, process), "it did not become ready"
            yield Server(port, process)
        except BaseException:
            log.seek(0)
            print(f"{' '.join(command)}, whose exit status is {process.poll()}, said at last:\n{log.read()[-5000:]}")
            raise
        finally:
            stop_process(process)


def sd35_serve(checkpoint: Path, ui: str = "off") -> list[str]:
    """The command of the service as it is out of the box, but for the page, whose loading would be measured as well."""
    return [str(Path(sys.executable).with_name("sd35")), "serve", "--ui", ui, "--checkpoint", str(checkpoint)]


async def scraped(client: Client) -> dict[str, float]:
    """The metrics now, by name and labels as they are written."""
    return parse_metrics((await client.ask("GET", "/metrics")).body.decode())


class Resident:
    """Samples a process's resident memory, from `start` to `stop`."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self._process = psutil.Process(process.pid)
        self.samples: list[tuple[float, int]] = []  # time.monotonic, bytes
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; needs a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._sample())

    def stop(self) -> None:
        """End."""
        assert self._task
        self._task.cancel()

    def now(self) -> int:
        """Bytes."""
        return int(self._process.memory_info().rss)

    async def _sample(self) -> None:
        while True:
            self.samples.append((time.monotonic(), self.now()))
            await asyncio.sleep(_SAMPLE_S)
