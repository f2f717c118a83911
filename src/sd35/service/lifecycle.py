"""The lifecycle of the service: loading in the background, ready, closing."""

import asyncio
from collections.abc import Callable
from typing import Literal

from sd35.engine.base import CLOSING_RETRY_S
from sd35.errors import NotReady
from sd35.generation.model_pool import ModelPool
from sd35.service.service import Service
from sd35.service.startup_times import StartupTimes

_LOADING_RETRY_S = 1.0  # `Retry-After` of requests while the models load


class ServiceLifecycle:
    """Opens a service in the background, so that a server answers while models load, and closes it gracefully.

    Args:
        open_service: Loads the models and returns the service. Called in a thread.
        on_ready: Called when the service is open.
        on_failure: Called with the exception if the service cannot be opened.
        startup: The durations of the phases of the start.
    """

    def __init__(
        self,
        open_service: Callable[[], Service],
        on_ready: Callable[[], None],
        on_failure: Callable[[Exception], None],
        startup: StartupTimes | None = None,
    ) -> None:
        self.startup = startup or StartupTimes()
        self._open_service, self._on_ready, self._on_failure = open_service, on_ready, on_failure
        self._service: Service | None = None
        self._loading: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.state: Literal["loading", "ready", "closing"] = "loading"

    @property
    def is_building(self) -> bool:
        """Whether a fallback backend is in use while graphs or TensorRT engines are built or loaded."""
        fallback_builder = self._service.pool.fallback_builder if self._service else None
        return bool(fallback_builder and fallback_builder.is_running)

    @property
    def service(self) -> Service:
        """The service. Raises NotReady while it loads, while it closes, and after an engine thread has failed."""
        if self.state != "ready" or self._service is None:
            raise NotReady(self.state, CLOSING_RETRY_S if self.state == "closing" else _LOADING_RETRY_S)
        if not self._service.is_running:
            raise NotReady.after_engine_failure(CLOSING_RETRY_S)
        return self._service

    @property
    def pool(self) -> ModelPool:
        """The service's model pool. Raises NotReady, like `service`."""
        return self.service.pool

    def start(self) -> None:
        """Start opening the service. Needs a running event loop."""
        self._loading = asyncio.get_running_loop().create_task(self._load())

    async def close(self) -> None:
        """Refuse new requests, finish the accepted ones, and close the service. A second call waits for the first."""
        self.state = "closing"
        if self._loading:
            await self._loading
        if self._service:
            self._closing = self._closing or asyncio.create_task(self._service.close())
            await self._closing

    async def _load(self) -> None:
        """Open the service in a thread. Start it, unless `close` was called meanwhile."""
        try:
            self._service = await asyncio.to_thread(self._open_service)
        except Exception as error:  # noqa: BLE001  the callback reports any error
            self._on_failure(error)
            return
        if self.state == "loading":
            self.state = "ready"
            self._service.start()  # only now: a service that closes while it loads must start no child process
            self._on_ready()
