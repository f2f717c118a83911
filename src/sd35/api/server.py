"""Runs the app in uvicorn: listens first, loads then, and at a signal finishes what runs."""

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
from sd35.api.jobs import job_body
from sd35.api.output_streams import use_nonblocking_streams
from sd35.api.protocol import bounded
from sd35.api.request_log import configure_logs
from sd35.api.sockets import address_of, listen
from sd35.api.ui_mount import Front, front_of
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
from sd35.telemetry.metrics import Metrics
from sd35.telemetry.telemetry import Telemetry
from sd35.telemetry.tracing import Tracing, open_provider

_ANSWERING_S = 30  # for clients to read their last answer
_MARGIN_S = 10  # for what follows the last answer, such as sending traces
_BODY = '{"prompt": "a cat on a blue background"}'


class _Server(uvicorn.Server):
    """uvicorn, with a first signal that lets images finish before it stops listening, and a second that ends at once.

    While it closes, /readyz and new images are answered with 503, so that a load balancer sees why.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: ServiceLifecycle, front: Front, end_within_s: float) -> None:
        """`end_within_s`: longest time from the first signal to the end of the process, whatever still runs then."""
        super().__init__(config)
        self._opening, self._front, self._end_within_s = lifecycle, front, end_within_s
        self._closing: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_asked_to_end = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until asked to end."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait until everything is answered; the page's streams would last as long as a browser's tab."""
        await self._front.close()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  uvicorn's signature
        """Begin to close; the second time, end."""
        # Not uvicorn's own: that would end the process by the signal, where "finished" is exit code 0.
        if self._is_asked_to_end:
            os._exit(128 + sig)
        self._is_asked_to_end = True
        deadline = threading.Timer(self._end_within_s, os._exit, [1])
        deadline.daemon = True
        deadline.start()
        assert self._loop
        self._loop.call_soon_threadsafe(self._begin_closing, sig)

    def _begin_closing(self, sig: int) -> None:
        structlog.get_logger().info("closing", signal=signal.Signals(sig).name)
        self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        if self._opening.state == "loading":
            os._exit(0)  # nothing runs, and a load that takes minutes cannot be interrupted
        try:
            await self._opening.close()
        except Exception:  # noqa: BLE001  the process ends in any case
            structlog.get_logger().exception("the service did not close as it should")
        self.should_exit = True


def serve(settings: Settings) -> None:
    """Serve until a signal, whoever has one of the keys, or, where there are none, everyone.

    Raises InvalidSetting, CheckpointError, BackendUnavailable, DoesNotFit, GenerationFailed, StoreUnavailable.
    """
    startup = StartupTimes(process_age_s())
    metrics = Metrics(settings.max_batch_rows)
    use_nonblocking_streams(metrics.output_dropped)
    configure_logs(settings.log_format)
    log = structlog.get_logger()
    for name in unknown_variables():
        log.warning("this environment variable is not read", name=name)
    check_backends(settings)
    named = (
        None if AUTO in settings.checkpoints else open_checkpoints(settings)
    )  # what is wrong with them is said first
    policy, storage = policy_of(settings), Storage.open(settings)
    webhooks = Webhooks(settings, storage.database.jobs, partial(job_body, storage.database.jobs))
    telemetry = Telemetry(metrics, Tracing(open_provider()), log_prompts=settings.log_prompts)
    listener = listen(settings.host, settings.port)
    _warn_if_open(listener.getsockname()[0], storage.database.keys)
    failures: list[Exception] = []

    def load() -> Service:
        with startup.phase("plan"):
            checkpoints = named or open_checkpoints(settings)
        pool = open_model_pool(settings, checkpoints, startup, with_fallback=True)
        retention = Retention.from_settings(settings, storage.images)
        service = Service(pool, storage, policy, retention, webhooks, telemetry)
        # What is loaded stays: else every full collection looks at all of it, and holds up the event loop for 0.1 s.
        gc.collect()
        gc.freeze()
        return service

    def on_ready() -> None:
        phases = {f"{phase}_s": round(took_s, 3) for phase, took_s in startup.seconds.items()}
        log.info("ready", after_s=round(process_age_s(), 3), **phases)
        print(_welcome(address_of(listener)), flush=True)  # noqa: T201  for the person at the terminal
        for name in lifecycle.pool.models:
            if why := why_standing_in(settings, name):
                print(f"WARNING: this is {name}: {why}.", flush=True)  # noqa: T201  the same
        front.start()

    def on_failure(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    front = front_of(settings, address_of(listener))
    lifecycle = ServiceLifecycle(load, on_ready, on_failure, startup)
    config = uvicorn.Config(
        create_app(lifecycle, settings, storage.database.keys, telemetry, front),
        loop="uvloop",
        http=bounded(settings.body_timeout_s),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # uvicorn would believe whoever is on this machine; the app knows whom to
        root_path=settings.root_path,
        timeout_graceful_shutdown=_ANSWERING_S,
    )
    server = _Server(config, lifecycle, front, settings.shutdown_grace_s + _ANSWERING_S + _MARGIN_S)
    server.run([listener])
    if failures:
        raise failures[0]
    if lifecycle.is_building:
        os._exit(0)  # it loads what was built, which cannot be interrupted; all else has ended


def _warn_if_open(host: str, keys: KeyStore | None) -> None:
    """Say aloud that whoever reaches the service may use it, where that is not this machine alone."""
    if ipaddress.ip_address(host).is_loopback or (keys and keys.keys()):
        return
    structlog.get_logger().warning("open to everyone: there are no API keys", host=host, remedy="sd35 keys add NAME")
    print(  # noqa: T201  for the person at the terminal
        f"WARNING: whoever reaches {host} may use this service: there are no API keys. Make one: sd35 keys add NAME",
        flush=True,
    )


def _welcome(address: str) -> str:
    """Where it is, and a line to paste."""
    curl = f"curl -X POST {address}/v1/txt2img -H 'content-type: application/json' -d {shlex.quote(_BODY)} -o out.png"
    return f"Ready: {address} (pages: {address}/docs). Try:\n\n  {curl}\n"
