"""The lifecycle of the service: loading in the background, ready, closing."""

import asyncio
from collections.abc import Callable
from typing import Literal

from sd35.engine.base import CLOSING_RETRY_S
from sd35.errors import NotReady
from sd35.generation.model_pool import ModelPool
from sd35.service.service import Service
from sd35.service.startup_times import StartupTimes

_LOADING_RETRY_S = 1.0


class ServiceLifecycle:
    """Opens a service in the background, so that a server answers while models load, and closes it gracefully."""

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
        """Whether a fallback is in use while graphs or engines are built or loaded."""
        fallback_builder = self._service.pool.fallback_builder if self._service else None
        return bool(fallback_builder and fallback_builder.is_running)

    @property
    def service(self) -> Service:
        """The service. Raises NotReady while it loads, while it closes, and after an engine thread has failed."""
        if self.state != "ready" or self._service is None:
            raise NotReady(self.state, CLOSING_RETRY_S if self.state == "closing" else _LOADING_RETRY_S)
        if not self._service.is_running:
            raise NotReady("broken", CLOSING_RETRY_S)
        return self._service

    @property
    def pool(self) -> ModelPool:
        """The service's model pool. Raises NotReady."""
        return self.service.pool

    def start(self) -> None:
        """Start opening the service. Needs a running event loop."""
        self._loading = asyncio.get_running_loop().create_task(self._load())

    async def close(self) -> None:
        """Refuse new requests, finish accepted ones, and close. Further calls wait for the same end."""
        self.state = "closing"
        if self._loading:
            await self._loading
        if self._service:
            self._closing = self._closing or asyncio.create_task(self._service.close())
            await self._closing

    async def _load(self) -> None:
        try:
            self._service = await asyncio.to_thread(self._open_service)
        except Exception as error:  # noqa: BLE001  the callback decides
            self._on_failure(error)
            return
        if self.state == "loading":
            self.state = "ready"
            self._service.start()  # not earlier, so that no child process starts if it is closed while loading
            self._on_ready()
