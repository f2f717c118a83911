"""The server of `sd35 serve`: listen, load the service, serve, and finish running work after a signal."""

import asyncio
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType

import structlog
import uvicorn

from sd35.api.app import create_app
from sd35.api.http_server import UiServer, address_of, listen, server_config
from sd35.api.jobs import job_body
from sd35.api.output_streams import use_nonblocking_streams
from sd35.api.terminal import Terminal
from sd35.api.ui_mount import UiMount, ui_mount_of
from sd35.host import process_age_s
from sd35.jobs.webhooks.webhooks import Webhooks
from sd35.planning.auto import AUTO
from sd35.service.lifecycle import ServiceLifecycle
from sd35.service.policy import policy_of
from sd35.service.service import Service
from sd35.service.startup_times import StartupTimes
from sd35.settings import Settings, unknown_variables
from sd35.startup import check_backends, open_checkpoints, open_model_pool
from sd35.storage.retention import Retention
from sd35.storage.storage import Storage
from sd35.telemetry.logs import configure_logs, is_console
from sd35.telemetry.metrics import Metrics
from sd35.telemetry.telemetry import Telemetry
from sd35.telemetry.tracing import Tracing, open_provider

_ANSWERING_S = 30  # for clients to read their last response
_MARGIN_S = 10  # for work after the last response, such as sending traces


class _Server(UiServer):
    """A server that finishes running images at the first signal and then exits. A second signal ends it at once.

    While it closes, /readyz and requests for images get 503, so that a load balancer sees the reason.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        lifecycle: ServiceLifecycle,
        ui: UiMount,
        exit_within_s: float,
        on_closing: Callable[[], None],
    ) -> None:
        """Create a server.

        Args:
            config: Settings of uvicorn.
            lifecycle: The service, which is closed at the first signal.
            ui: The user interface.
            exit_within_s: Seconds from the first signal to the forced end of the process.
            on_closing: Called when a service that is ready begins to close.
        """
        super().__init__(config, ui)
        self._lifecycle, self._exit_within_s, self._on_closing = lifecycle, exit_within_s, on_closing
        self._closing: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_asked_to_exit = False
        self._failure: Exception | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal, or until `fail` is called. Raises the error that `fail` received."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)
        if self._failure:
            raise self._failure

    def fail(self, error: Exception) -> None:
        """Stop serving because the service cannot be opened."""
        self._failure = error
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  uvicorn's signature
        """Begin to close at the first signal, and exit at the second."""
        # Replaces uvicorn's own handler: with it, the process would end by the signal instead of with exit code 0.
        if self._is_asked_to_exit:
            os._exit(128 + sig)  # the exit code that shells give to a process that a signal ended
        self._is_asked_to_exit = True
        # A thread ends the process even if the event loop hangs.
        deadline = threading.Timer(self._exit_within_s, os._exit, [1])
        deadline.daemon = True
        deadline.start()
        assert self._loop
        self._loop.call_soon_threadsafe(self._begin_closing, sig)

    def _begin_closing(self, sig: int) -> None:
        """Log the signal, and close the service in the background. Runs in the event loop."""
        structlog.get_logger().info("the server is closing", signal=signal.Signals(sig).name)
        if self._lifecycle.state == "ready":
            self._on_closing()
        self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        """Close the service, then make uvicorn stop. End the process at once if the service is still loading."""
        if self._lifecycle.state == "loading":
            os._exit(0)  # no request is running, and loading cannot be interrupted
        try:
            await self._lifecycle.close()
        except Exception:  # noqa: BLE001  the process ends in any case
            structlog.get_logger().exception("the service did not close cleanly")
        self.should_exit = True


def _prepare_process(settings: Settings, metrics: Metrics) -> None:
    """Set up garbage collection, output streams and logs. Warn about environment variables that are no settings."""
    gc.freeze()  # 170,000 objects of imported modules, which each full collection during loading would scan
    use_nonblocking_streams(metrics.output_dropped)
    configure_logs(settings.log_format)
    for name in unknown_variables():
        structlog.get_logger().warning("no setting has the name of this variable; correct or unset it", name=name)


def serve(settings: Settings) -> None:
    """Serve until a signal. Clients need an API key if any keys exist; otherwise everyone may use the service.

    Raises InvalidSetting for an invalid setting or an address that is not available, StoreUnavailable if the database
    does not answer, and the errors of `open_model_pool`.
    """
    startup = StartupTimes(process_age_s())
    metrics = Metrics(settings.max_batch_rows)
    _prepare_process(settings, metrics)
    check_backends(settings)
    # Named checkpoints are opened first, so that an invalid one is reported at once.
    checkpoints = None if AUTO in settings.checkpoints else open_checkpoints(settings)
    policy, storage = policy_of(settings), Storage.open(settings)
    webhooks = Webhooks(settings, storage.database.jobs, partial(job_body, storage.database.jobs))
    telemetry = Telemetry(metrics, Tracing(open_provider()), log_prompts=settings.log_prompts)
    listener = listen(settings.host, settings.port)
    address, host = address_of(listener), listener.getsockname()[0]
    terminal = Terminal(settings, address, host, storage.database.name, needs_key=bool(storage.database.keys.keys()))
    terminal.print_loading()

    def load() -> Service:
        """Load the models and create the service. Runs in a thread."""
        with startup.phase("plan"):
            opened = checkpoints or open_checkpoints(settings)
        pool = open_model_pool(settings, opened, startup, terminal.on_plan, with_fallback=True)
        service = Service(pool, storage, policy, Retention.from_settings(settings, storage.images), webhooks, telemetry)
        # Without this, a later collection would scan the loaded objects and block the event loop for 0.1 s.
        gc.collect()
        gc.freeze()
        return service

    def on_ready() -> None:
        """Report that the server is ready, and start to load the user interface."""
        models = list(lifecycle.pool.models.values())
        if not is_console(settings.log_format):  # in console format, `print_ready` is enough
            phases = {f"{phase}_s": round(took_s, 3) for phase, took_s in startup.seconds.items()}
            served = [f"{model.name}: {model.backend}, {model.precision}" for model in models]
            structlog.get_logger().info("ready", after_s=round(process_age_s(), 3), models=served, **phases)
        terminal.print_ready(models, process_age_s(), has_ui=ui.state != "absent", is_building=lifecycle.is_building)
        ui.start()

    ui = ui_mount_of(settings, address)
    lifecycle = ServiceLifecycle(load, on_ready, lambda error: server.fail(error), startup)  # noqa: PLW0108  `server` is created below
    app = create_app(lifecycle, settings, storage.database.keys, telemetry, ui)
    exit_within_s = settings.shutdown_grace_s + _ANSWERING_S + _MARGIN_S
    # `create_app` handles the headers of trusted proxies.
    config = server_config(
        app, settings.body_timeout_s, _ANSWERING_S, root_path=settings.root_path, proxy_headers=False
    )
    server = _Server(config, lifecycle, ui, exit_within_s, terminal.print_stopping)
    server.run([listener])
    if lifecycle.is_building:
        # A thread that loads a finished build cannot be interrupted. Everything else has ended.
        os._exit(0)
