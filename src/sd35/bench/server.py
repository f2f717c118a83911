"""The server that is measured: one that is started here, in a data directory of its own, or one that runs already."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import psutil

from sd35.errors import MeasuringFailed
from sd35.settings import PREFIX, Settings, flag_of

_READY_POLL_S = 0.02
_ENDING_S = 60
_PAGE_S = 10
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


# What shapes a server's figures: all else of the settings is for what it keeps and whom it serves.
_PASSED = (
    "checkpoints", "weights", "registry", "base_checkpoint", "transformer", "offline", "backend", "precision",
    "fallback", "device", "offload", "tiled_decode", "torch_compile", "vram", "ram", "threads", "max_pixels",
    "max_in_flight",
    "max_wait_s", "max_batch_rows", "reproducible", "memory_mb", "embedding_cache_mb", "cache_dir",
)  # fmt: skip


class Server(NamedTuple):
    """A server that is ready. One that was started here has a process, and took so long from its start to ready."""

    url: str
    pid: int | None = None
    ready_s: float | None = None


class Starting(NamedTuple):
    """A process that is on its way to be ready."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    began_s: float

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def until_ready(self) -> Server:
        """Wait. Raises MeasuringFailed with its last words where it ends before."""
        with client(self.url) as asking:
            while not is_ready(asking):
                if self.process.poll() is not None:
                    raise MeasuringFailed(f"the server did not start: {last_words(self.log)}")
                time.sleep(_READY_POLL_S)
        return Server(self.url, self.process.pid, time.monotonic() - self.began_s)

    def check_runs(self) -> None:
        """Raises MeasuringFailed with its last words where it has ended."""
        if self.process.poll() is not None:
            raise MeasuringFailed(f"the server ended while it was measured: {last_words(self.log)}")


@contextmanager
def started(arguments: Sequence[str]) -> Iterator[Starting]:
    """`sd35 serve` with arguments, on a free port of this machine, with nothing kept from before; it ends with this."""
    with tempfile.TemporaryDirectory(prefix="sd35-bench-") as folder:
        port, log = free_port(), Path(folder) / "log"
        own = ["--host", "127.0.0.1", "--port", str(port), "--data-dir", f"{folder}/data", "--log-format", "json"]
        command = [sys.executable, "-c", "from sd35.cli import main; main()", "serve", *own, *arguments]
        with log.open("wb") as output:
            began_s = time.monotonic()
            process = subprocess.Popen(  # noqa: S603  this project's own command
                command,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield Starting(process, log, port, began_s)
        finally:
            end(process)


def arguments_of(settings: Settings) -> list[str]:
    """The flags by which `sd35 serve` gets what of the settings is not a default and shapes its figures."""
    arguments: list[str] = []
    for name in _PASSED:
        value = getattr(settings, name)
        if value == Settings.model_fields[name].get_default(call_default_factory=True):
            continue
        if isinstance(value, bool):
            arguments.append(flag_of(name))
        else:
            for each in value if isinstance(value, tuple) else (value,):
                arguments += [flag_of(name), str(each)]
    return arguments


def told_of(settings: Settings) -> dict[str, str]:
    """The same settings, defaults too, for a report: without where somebody's cache lies."""
    return {name: str(getattr(settings, name)) for name in _PASSED if name != "cache_dir"}


def client(url: str, headers: dict[str, str] | None = None) -> httpx2.Client:
    """For pages of a server beside its images; to be used again, for making one takes 25 ms."""
    return httpx2.Client(base_url=url, headers=headers, timeout=_PAGE_S, trust_env=False)


def is_ready(asking: httpx2.Client) -> bool:
    """Whether /readyz answers 200."""
    with suppress(httpx2.HTTPError):
        return asking.get("/readyz").status_code == httpx2.codes.OK
    return False


def check_reachable(url: str) -> None:
    """Raises MeasuringFailed where nothing answers at an address; which answer it is does not matter."""
    try:
        httpx2.get(url, timeout=_PAGE_S, trust_env=False)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise MeasuringFailed(f"--url: {url} cannot be reached: {error}") from error


def pid_at(url: str) -> int | None:
    """The process that listens at an address of this machine, where it may be known."""
    where = urlsplit(url)
    if where.hostname not in {"127.0.0.1", "localhost", "::1"}:
        return None
    port = where.port or (443 if where.scheme == "https" else 80)
    with suppress(psutil.AccessDenied):
        found = psutil.net_connections("tcp")
        return next((each.pid for each in found if each.status == psutil.CONN_LISTEN and each.laddr.port == port), None)
    return None


def scraped(asking: httpx2.Client) -> dict[str, float]:
    """The server's metrics; none where it has none."""
    with suppress(httpx2.HTTPError):
        answer = asking.get("/metrics")
        if answer.status_code == httpx2.codes.OK:
            return parsed(answer.text)
    return {}


def parsed(metrics: str) -> dict[str, float]:
    """Metrics in Prometheus' text format, by name and labels as they are written."""
    return {name: float(value) for name, value in _SAMPLE.findall(metrics)}


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def last_words(log: Path) -> str:
    """The line in which `sd35` says what is wrong, or else the last one."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [number for number, line in enumerate(lines) if line.startswith("sd35: ")]
    return lines[said[-1]].removeprefix("sd35: ") if said else (lines[-1] if lines else "it said nothing")


def _environment() -> dict[str, str]:
    """Without this project's settings: a store or a database of somebody's is not for what is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def end(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a session gently, then whatever of its session is left: LitServe leaves its workers."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_ENDING_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
