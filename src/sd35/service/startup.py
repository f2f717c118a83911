"""Composes a model pool from settings, and keeps it through opening, serving and closing."""

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.network_sizes import network_sizes_on_disk
from sd35.checkpoints.tokenizers import Tokenizers
from sd35.content_filter import load_filter
from sd35.engine.local import CLOSING_RETRY_S
from sd35.engine.prompt_cache import EmbeddingCache
from sd35.engine.scheduler import SLOWDOWN_TARGET, DeviceLimits
from sd35.errors import InvalidSetting, NotCompiled, NotReady
from sd35.generation.fallback import FallbackBuilder, command_of
from sd35.generation.model import Model
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import ModelAliases
from sd35.planning.auto import AUTO, choose, open_named
from sd35.planning.fit import available_memory, check_fallback, place_fallback, placement_of, plan_for
from sd35.planning.plan import Placement
from sd35.service.service import Service, ServingPolicy
from sd35.service.startup_times import StartupTimes
from sd35.settings import Settings

_LOADING_RETRY_S = 1.0
_MB = 10**6
_DAY_S = 24 * 3600.0
OF_FREE_MEMORY = 0.9  # the rest is for what is not counted: latents, images being encoded, other processes


def open_checkpoints(settings: Settings) -> list[Checkpoint]:
    """The checkpoints of the settings; `auto` is chosen, and fetched where it has to be; what is named besides is one.

    Raises CheckpointError, InvalidSetting where two share a name, or it is open whose weights the files hold, and for
    `auto` BackendUnavailable.
    """
    if settings.weights and len(settings.checkpoints) > 1:
        raise InvalidSetting(f"weights: got files beside {len(settings.checkpoints)} checkpoints; allowed: beside one")
    names = [choose(settings, available_memory(settings)) if name == AUTO else name for name in settings.checkpoints]
    if AUTO in settings.checkpoints:
        names = list(dict.fromkeys(names))  # it may choose what is named besides
    checkpoints = [open_named(name, settings) for name in names]
    found = [checkpoint.name for checkpoint in checkpoints]
    if doubled := sorted({name for name in found if found.count(name) > 1}):
        raise InvalidSetting(f"checkpoints: two are named {', '.join(doubled)}; rename a directory")
    return checkpoints


def open_model_pool(
    settings: Settings,
    checkpoints: Sequence[Checkpoint],
    startup: StartupTimes | None = None,
    *,
    with_fallback: bool = False,
) -> ModelPool:
    """Plan, load the checkpoints as planned, and draw a first image with each: what is returned is ready.

    With the settings' fallback, which is loaded beside, it answers for checkpoints that are not built yet; those are
    the pool's `fallback_builder`, to be started. Takes seconds to minutes.

    Raises DoesNotFit, CheckpointError (NotCompiled
    without a fallback), BackendUnavailable, InvalidSetting, GenerationFailed.
    """
    startup = startup or StartupTimes()
    fallback = settings.fallback_settings if with_fallback else None
    with startup.phase("import"):
        room = available_memory(settings)
        if fallback:
            check_fallback(settings, fallback, room)
    with startup.phase("plan"):
        all_network_sizes = [network_sizes_on_disk(each) for each in checkpoints]
        plan = plan_for(settings, all_network_sizes, room)
        first = placement_of(plan)
        beside = place_fallback(fallback, all_network_sizes, plan) if fallback else None
    fallbacks = [_open_model(fallback, beside, each) for each in checkpoints] if fallback and beside else []
    open_first = partial(_open_model, settings, first)
    models, pending = _open_built(open_first, checkpoints, fallbacks)
    for model, other in zip(models, fallbacks, strict=bool(fallbacks)):
        if model is not other and model.profile == other.profile:
            raise InvalidSetting(f"fallback: got {settings.fallback!r}, which is {other.profile} here, as the first is")
    for model in {*models, *fallbacks}:
        startup.add(model.backend.startup_s)
    # Networks that are not there now come: what is free for working is what their placement leaves.
    weights_bytes = first.weights_bytes + (beside.weights_bytes if beside else 0)
    to_be_built_bytes = first.weights_bytes if pending else 0
    free_bytes = min(models[0].backend.memory.free_bytes() - to_be_built_bytes, room.device_bytes - weights_bytes)
    memory_bytes = settings.memory_mb * _MB or int(OF_FREE_MEMORY * free_bytes)
    limits = limits_of(settings, memory_bytes)
    embeddings = EmbeddingCache(settings.embedding_cache_mb * _MB)
    pool = ModelPool(models, settings.max_pixels, limits, embeddings, reproducible=settings.reproducible)
    for model in fallbacks:
        pool.add(model)
    if pending:
        pool.fallback_builder = FallbackBuilder(pending, partial(command_of, settings), open_first, pool.swap)
    try:
        with startup.phase("warm"):
            pool.draw_first()
    except BaseException:
        pool.engine.close()
        raise
    return pool


def limits_of(settings: Settings, memory_bytes: int) -> DeviceLimits:
    """What a device takes on that has so much working memory."""
    max_slowdown = (
        math.inf if settings.max_in_flight else SLOWDOWN_TARGET
    )  # who sets a number of places wants them used
    return DeviceLimits(
        settings.max_batch_rows, max_in_flight_of(settings), settings.max_wait_s, memory_bytes, max_slowdown
    )


def max_in_flight_of(settings: Settings) -> int:
    """Images accepted and not ended: as it is set, or little more than a batch, so that none waits long."""
    return settings.max_in_flight or settings.max_batch_rows + max(2, settings.max_batch_rows // 4)


def _open_model(settings: Settings, placement: Placement, checkpoint: Checkpoint) -> Model:
    """A checkpoint in the settings' backend, placed as planned."""
    options = Options(
        precision=settings.precision,
        device=settings.device,
        offload=placement.offload,
        threads=settings.threads,
        tiled_decode=placement.tiled_decode,
        torch_compile=settings.torch_compile,
        cache_dir=settings.cache_dir,
    )
    return Model(checkpoint, open_backend(settings.backend, checkpoint, options), Tokenizers(checkpoint))


def _open_built(
    open_first: Callable[[Checkpoint], Model], checkpoints: Sequence[Checkpoint], fallbacks: Sequence[Model]
) -> tuple[list[Model], list[Checkpoint]]:
    """What new requests are answered by, and the checkpoints whose fallback that is, for they are not built yet."""
    models, pending = [], []
    for index, checkpoint in enumerate(checkpoints):
        try:
            models.append(open_first(checkpoint))
        except NotCompiled:
            if not fallbacks:
                raise
            models.append(fallbacks[index])
            pending.append(checkpoint)
    return models, pending


def policy_of(settings: Settings) -> ServingPolicy:
    """What the settings say of serving. Raises InvalidSetting."""
    return ServingPolicy(
        load_filter(settings.content_filter),
        ModelAliases.of(settings.model_aliases, is_strict=settings.strict_dialects),
        has_metadata=settings.keep_metadata,
        redirects=settings.redirect_images,
        retention_s=settings.retention_days * _DAY_S or None,
        shutdown_grace_s=settings.shutdown_grace_s,
        most_running=max(1, max_in_flight_of(settings) // 2),  # the other half is for who waits on a connection
        most_waiting=settings.max_jobs,
    )


class ServiceLifecycle:
    """A service that opens in the background, so that a server answers while its model loads, and closes gracefully."""

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
        """Whether a fallback answers in place of something that is being built, or loaded after it was."""
        fallback_builder = self._service.pool.fallback_builder if self._service else None
        return bool(fallback_builder and fallback_builder.is_running)

    @property
    def service(self) -> Service:
        """The service. Raises NotReady where it is not open yet, or not any more, or its engine broke."""
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
        """Begin to open; needs a running event loop."""
        self._loading = asyncio.get_running_loop().create_task(self._load())

    async def close(self) -> None:
        """Build no more, refuse what is new, and finish what was accepted. Doing it twice does no harm."""
        self.state = "closing"
        if self._loading:
            await self._loading
        if self._service:
            self._closing = self._closing or asyncio.create_task(self._service.close())
            await self._closing

    async def _load(self) -> None:
        try:
            self._service = await asyncio.to_thread(self._open_service)
        except Exception as error:  # noqa: BLE001  whoever opened it decides what to do
            self._on_failure(error)
            return
        if self.state == "loading":
            self.state = "ready"
            self._service.start()  # not before: who ends it while it loads ends no child
            self._on_ready()
