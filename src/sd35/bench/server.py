"""The server under test: started here with an empty data directory, or already running."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import psutil

from sd35.errors import MeasuringFailed
from sd35.settings import PREFIX, Settings
from sd35.settings.description import flag_of

_READY_POLL_S = 0.01  # also the precision of `ready_s`
_STOP_TIMEOUT_S = 60
_HTTP_TIMEOUT_S = 10
_METRIC = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)
# The settings that affect a server's figures. The others are about storage and access.
_FORWARDED = (
    "checkpoints", "weights", "registry", "base_checkpoint", "transformer", "offline", "backend", "precision",
    "fallback", "device", "offload", "tiled_decode", "torch_compile", "vram", "ram", "threads", "max_pixels",
    "max_in_flight", "max_wait_s", "max_batch_rows", "reproducible", "memory_mb", "embedding_cache_mb", "cache_dir",
)  # fmt: skip


class Server(NamedTuple):
    """A server that is ready.

    `pid` is its process, or None if it cannot be found on this machine. `ready_s` is the time from process start to
    ready, or None if the server was not started here.
    """

    url: str
    pid: int | None = None
    ready_s: float | None = None


class StartingServer(NamedTuple):
    """A server process that is not ready yet. `start_s` is a time of `time.monotonic`."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str
    start_s: float

    def wait_until_ready(self) -> Server:
        """Wait until `/readyz` answers 200. Raises MeasuringFailed with the server's last error if the server ends."""
        with http_client(self.url) as http:
            while not _is_ready(http):
                self.check_running("did not start")
                time.sleep(_READY_POLL_S)
        return Server(self.url, self.process.pid, time.monotonic() - self.start_s)

    def check_running(self, failure: str = "ended during the measurement") -> None:
        """Check that the server still runs. If it has ended, raises MeasuringFailed: `failure`, then its last error."""
        if self.process.poll() is not None:
            raise MeasuringFailed(f"the server {failure}: {error_line(self.log)}")


@contextmanager
def start_server(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[StartingServer]:
    """Start a server on a free port with an empty data directory, and stop it at the end of the block.

    Args:
        command: A command that takes `--port`, such as `serve_command(...)`.
        environment: The environment variables of the server. The default is this process's environment without the
            settings of this project, so that the user's database and image store are not used.
    """
    if environment is None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with tempfile.TemporaryDirectory(prefix="sd35-bench-") as folder:
        port, log = free_port(), Path(folder) / "log"
        with log.open("wb") as output:
            start_s = time.monotonic()
            process = subprocess.Popen(  # noqa: S603  the caller chooses the command
                [*command, "--port", str(port)],
                env={**environment, f"{PREFIX}DATA_DIR": f"{folder}/data"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield StartingServer(process, log, f"http://127.0.0.1:{port}", start_s)
        finally:
            stop_process(process)


def serve_command(arguments: Sequence[str]) -> list[str]:
    """Return the command that runs `sd35 serve` with this interpreter, on 127.0.0.1."""
    code = "from sd35.cli import main; main()"
    return [sys.executable, "-c", code, "serve", "--host", "127.0.0.1", "--log-format", "json", *arguments]


def settings_command(settings: Settings) -> list[str]:
    """Return the command that runs `sd35 serve` with the settings that affect its figures."""
    return serve_command(serve_arguments(settings))


def serve_arguments(settings: Settings) -> list[str]:
    """Return the flags of `sd35 serve` for the settings that affect its figures and differ from the defaults."""
    arguments: list[str] = []
    for name in _FORWARDED:
        value = getattr(settings, name)
        if value == Settings.model_fields[name].get_default(call_default_factory=True):
            continue
        if isinstance(value, bool):  # the default is false, so this is true, and the flag has no argument
            arguments.append(flag_of(name))
            continue
        items = value if isinstance(value, tuple) else (value,)
        for item in items:
            arguments += [flag_of(name), str(item)]
    return arguments


def reported_settings(settings: Settings) -> dict[str, str]:
    """Return the settings that affect a server's figures, as text for a report.

    Includes settings with default values, but not the cache directory, which says nothing to a reader.
    """
    return {name: str(getattr(settings, name)) for name in _FORWARDED if name != "cache_dir"}


def http_client(url: str, headers: dict[str, str] | None = None) -> httpx2.Client:
    """Return a client for a server's readiness, metrics and models. Reuse it: creating one takes 25 ms."""
    return httpx2.Client(base_url=url, headers=headers, timeout=_HTTP_TIMEOUT_S, trust_env=False)


def _is_ready(http: httpx2.Client) -> bool:
    with suppress(httpx2.HTTPError):  # the server does not listen yet
        return http.get("/readyz").status_code == httpx2.codes.OK
    return False


def check_reachable(url: str) -> None:
    """Check that a server answers at an address, with any HTTP status. Raises MeasuringFailed if it does not answer."""
    try:
        httpx2.get(url, timeout=_HTTP_TIMEOUT_S, trust_env=False)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise MeasuringFailed(
            f"--url: {url} cannot be reached ({error}). Check the address, and that the server is running"
        ) from error


def pid_at(url: str) -> int | None:
    """Return the process ID of the server that listens at an address of this machine, or None if it is unknown."""
    address = urlsplit(url)
    if address.hostname not in {"127.0.0.1", "localhost", "::1"}:
        return None
    port = address.port or (443 if address.scheme == "https" else 80)
    with suppress(psutil.AccessDenied):  # some systems let only root list the sockets of all processes
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                pid: int | None = connection.pid
                return pid
    return None


def fetch_metrics(http: httpx2.Client) -> dict[str, float]:
    """Fetch a server's metrics, by name and labels as in `parse_metrics`. Returns an empty dict if there are none."""
    with suppress(httpx2.HTTPError):
        response = http.get("/metrics")
        if response.status_code == httpx2.codes.OK:
            return parse_metrics(response.text)
    return {}


def parse_metrics(text: str) -> dict[str, float]:
    """Parse Prometheus' text format into values by name and labels: `sd35_engine_images{state="waiting"}`."""
    return {name: float(value) for name, value in _METRIC.findall(text)}


def free_port() -> int:
    """Return a port that no process uses at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # for port 0, the system chooses a free one
        port: int = listener.getsockname()[1]
        return port


def error_line(log: Path) -> str:
    """Return the last error that `sd35` wrote to a log. Without an error, returns the last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("sd35: ") for line in lines if line.startswith("sd35: ")]
    return (errors or lines or ["no output"])[-1]


def stop_process(process: subprocess.Popen[Any]) -> None:
    """Terminate a process that was started with `start_new_session=True`, then kill the processes that it started.

    Some servers, such as LitServe, leave their workers behind.
    """
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):  # no process is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
