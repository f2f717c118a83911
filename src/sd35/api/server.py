"""The server: listen, load the service, serve, and finish the running work when a signal comes."""

import asyncio
import gc
import ipaddress
import os
import shlex
import signal
import socket
import threading
from functools import partial
from types import FrameType

import structlog
import uvicorn

from sd35.access.keys import KeyStore
from sd35.api.app import create_app
from sd35.api.http_server import UiServer, address_of, listen, server_config
from sd35.api.jobs import job_body
from sd35.api.output_streams import use_nonblocking_streams
from sd35.api.ui_mount import UiMount, ui_mount_of
from sd35.host import process_age_s
from sd35.jobs.webhooks.webhooks import Webhooks
from sd35.planning.auto import AUTO, why_standing_in
from sd35.service.lifecycle import ServiceLifecycle
from sd35.service.policy import policy_of
from sd35.service.service import Service
from sd35.service.startup_times import StartupTimes
from sd35.settings import Settings, unknown_variables
from sd35.startup import check_backends, open_checkpoints, open_model_pool
from sd35.storage.retention import Retention
from sd35.storage.storage import Storage
from sd35.telemetry.logs import configure_logs
from sd35.telemetry.metrics import Metrics
from sd35.telemetry.telemetry import Telemetry
from sd35.telemetry.tracing import Tracing, open_provider

_ANSWERING_S = 30  # for clients to read their last response
_MARGIN_S = 10  # for the work after the last response, such as sending traces
_BODY = '{"prompt": "a cat on a blue background"}'


class _Server(UiServer):
    """A server that finishes running images at a first signal before it stops listening, and exits at a second one.

    While it closes, /readyz and new images are answered with 503, so that a load balancer sees the reason.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: ServiceLifecycle, ui: UiMount, exit_within_s: float) -> None:
        """`exit_within_s`: time from the first signal after which the process exits whatever still runs."""
        super().__init__(config, ui)
        self._lifecycle, self._exit_within_s = lifecycle, exit_within_s
        self._closing: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_asked_to_exit = False
        self._failure: Exception | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal or a failure. Raises the failure."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)
        if self._failure:
            raise self._failure

    def fail(self, error: Exception) -> None:
        """End serving because the service cannot be opened."""
        self._failure = error
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  uvicorn's signature
        """Close at the first signal, exit at the second."""
        # Not uvicorn's own handler, which ends the process by the signal: here, a clean end is exit code 0.
        if self._is_asked_to_exit:
            os._exit(128 + sig)
        self._is_asked_to_exit = True
        deadline = threading.Timer(self._exit_within_s, os._exit, [1])
        deadline.daemon = True
        deadline.start()
        assert self._loop
        self._loop.call_soon_threadsafe(self._begin_closing, sig)

    def _begin_closing(self, sig: int) -> None:
        structlog.get_logger().info("closing", signal=signal.Signals(sig).name)
        self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        if self._lifecycle.state == "loading":
            os._exit(0)  # nothing runs, and a load that takes minutes cannot be interrupted
        try:
            await self._lifecycle.close()
        except Exception:  # noqa: BLE001  the process ends in any case
            structlog.get_logger().exception("the service did not close cleanly")
        self.should_exit = True


def serve(settings: Settings) -> None:
    """Serve until a signal: to callers with a key, or to everyone if there are no keys.

    Raises InvalidSetting, CheckpointError, BackendUnavailable, DoesNotFit, GenerationFailed, StoreUnavailable.
    """
    gc.freeze()  # the 170,000 objects of the imports, which every full collection while loading would scan
    startup = StartupTimes(process_age_s())
    metrics = Metrics(settings.max_batch_rows)
    use_nonblocking_streams(metrics.output_dropped)
    configure_logs(settings.log_format)
    for name in unknown_variables():
        structlog.get_logger().warning("this environment variable is not read", name=name)
    check_backends(settings)
    # Named checkpoints are opened before anything else, so that an invalid one is reported at once.
    checkpoints = None if AUTO in settings.checkpoints else open_checkpoints(settings)
    policy, storage = policy_of(settings), Storage.open(settings)
    webhooks = Webhooks(settings, storage.database.jobs, partial(job_body, storage.database.jobs))
    telemetry = Telemetry(metrics, Tracing(open_provider()), log_prompts=settings.log_prompts)
    listener = listen(settings.host, settings.port)
    _warn_if_open(listener.getsockname()[0], storage.database.keys)

    def load() -> Service:
        with startup.phase("plan"):
            opened = checkpoints or open_checkpoints(settings)
        pool = open_model_pool(settings, opened, startup, with_fallback=True)
        service = Service(pool, storage, policy, Retention.from_settings(settings, storage.images), webhooks, telemetry)
        # Later collections would otherwise scan all of it, and block the event loop for 0.1 s.
        gc.collect()
        gc.freeze()
        return service

    def on_ready() -> None:
        _report_ready(settings, lifecycle, address_of(listener))
        ui.start()

    ui = ui_mount_of(settings, address_of(listener))
    lifecycle = ServiceLifecycle(load, on_ready, lambda error: server.fail(error), startup)  # noqa: PLW0108  `server` is created below
    app = create_app(lifecycle, settings, storage.database.keys, telemetry, ui)
    exit_within_s = settings.shutdown_grace_s + _ANSWERING_S + _MARGIN_S
    # The app itself knows the trusted proxies.
    config = server_config(
        app, settings.body_timeout_s, _ANSWERING_S, root_path=settings.root_path, proxy_headers=False
    )
    server = _Server(config, lifecycle, ui, exit_within_s)
    server.run([listener])
    if lifecycle.is_building:
        os._exit(0)  # it loads a finished build, which cannot be interrupted; everything else has ended


def _warn_if_open(host: str, keys: KeyStore | None) -> None:
    """Warn if other machines can reach the service and there are no API keys."""
    if ipaddress.ip_address(host).is_loopback or (keys and keys.keys()):
        return
    structlog.get_logger().warning("open to everyone: there are no API keys", host=host, remedy="sd35 keys add NAME")
    print(  # noqa: T201  for the person at the terminal
        f"WARNING: whoever reaches {host} may use this service: there are no API keys. Make one: sd35 keys add NAME",
        flush=True,
    )


def _report_ready(settings: Settings, lifecycle: ServiceLifecycle, address: str) -> None:
    """Log the start-up times, and print the address and a command to try."""
    phases = {f"{phase}_s": round(took_s, 3) for phase, took_s in lifecycle.startup.seconds.items()}
    structlog.get_logger().info("ready", after_s=round(process_age_s(), 3), **phases)
    curl = f"curl -X POST {address}/v1/txt2img -H 'content-type: application/json' -d {shlex.quote(_BODY)} -o out.png"
    print(f"Ready: {address} (pages: {address}/docs). Try:\n\n  {curl}\n", flush=True)  # noqa: T201  for the terminal
    for name in lifecycle.pool.models:
        if reason := why_standing_in(settings, name):
            print(f"WARNING: this is {name}: {reason}.", flush=True)  # noqa: T201  for the terminal
