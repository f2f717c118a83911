"""From settings to an engine with its models: the only module that knows which engine serves."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from sd35.backends.options import Options
from sd35.backends.registry import check_available, open_backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.network_sizes import network_sizes_on_disk
from sd35.checkpoints.tokenizers import Tokenizers
from sd35.engine.base import DeviceLimits
from sd35.engine.local.engine import LocalEngine
from sd35.engine.local.pipeline import Pipeline
from sd35.engine.local.prompt_cache import EmbeddingCache
from sd35.engine.model_info import ModelInfo
from sd35.engine.scheduling.scheduler import SLOWDOWN_TARGET
from sd35.errors import InvalidSetting, NotCompiled
from sd35.generation.fallback import FallbackBuilder, command_of
from sd35.generation.model_pool import ModelPool
from sd35.planning.auto import AUTO, choose, open_named
from sd35.planning.fit import available_memory, check_fallback, place_fallback, placement_of, plan_for
from sd35.planning.plan import Placement
from sd35.service.policy import max_in_flight_of
from sd35.service.startup_times import StartupTimes
from sd35.settings import Settings

_MB = 10**6
OF_FREE_MEMORY = 0.9  # the rest is for uncounted uses: latents, images being encoded, other processes


def check_backends(settings: Settings) -> None:
    """Raise InvalidSetting or BackendUnavailable if the backend or the fallback cannot run here. Imports neither."""
    check_available(settings.backend)
    if settings.fallback_settings:
        check_available(settings.fallback_settings.backend, "fallback")


def open_checkpoints(settings: Settings) -> list[Checkpoint]:
    """Open the checkpoints of the settings. `auto` opens the best one, and downloads it if needed.

    Raises CheckpointError; InvalidSetting if two have the same name, or with `weights` and several checkpoints; and for
    `auto` BackendUnavailable.
    """
    if settings.weights and len(settings.checkpoints) > 1:
        raise InvalidSetting(f"weights: got files beside {len(settings.checkpoints)} checkpoints; allowed: beside one")
    names = [choose(settings, available_memory(settings)) if name == AUTO else name for name in settings.checkpoints]
    if AUTO in settings.checkpoints:
        names = list(dict.fromkeys(names))  # it may choose one that the settings name too
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
    """Plan the memory, load the checkpoints as planned, and generate a first image with each.

    Takes seconds to minutes. `with_fallback` loads the settings' fallback too. It serves checkpoints whose graphs or
    engines are not built yet. The pool's `fallback_builder` builds them after its start.

    Raises DoesNotFit, CheckpointError (NotCompiled without a fallback), BackendUnavailable, InvalidSetting,
    GenerationFailed.
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
        second = place_fallback(fallback, all_network_sizes, plan) if fallback else None
    fallbacks = [_open_pipeline(fallback, second, each) for each in checkpoints] if fallback and second else []
    open_first = partial(_open_pipeline, settings, first)
    pipelines, pending = _open_built(open_first, checkpoints, fallbacks)
    _check_profiles(settings, pipelines, fallbacks)
    for pipeline in {*pipelines, *fallbacks}:
        startup.add(pipeline.backend.startup_s)
    # Networks that are built later are in the plan already. They need memory too, so working memory is the rest.
    to_be_built_bytes = first.weights_bytes if pending else 0
    unplanned_bytes = room.device_bytes - first.weights_bytes - (second.weights_bytes if second else 0)
    free_bytes = min(pipelines[0].backend.memory.free_bytes() - to_be_built_bytes, unplanned_bytes)
    tokenizers = {each.name: Tokenizers(each) for each in checkpoints}
    engine = LocalEngine(
        [*pipelines, *fallbacks],
        limits_of(settings, settings.memory_mb * _MB or int(OF_FREE_MEMORY * free_bytes)),
        EmbeddingCache(settings.embedding_cache_mb * _MB),
        reproducible=settings.reproducible,
    )
    pool = ModelPool(engine, tokenizers, settings.max_pixels)
    if pending:
        open_later = partial(_open_into, engine, open_first)
        pool.fallback_builder = FallbackBuilder(pending, partial(command_of, settings), open_later, pool.swap)
    try:
        with startup.phase("warm"):
            pool.warm_up()
    except BaseException:
        engine.close()
        raise
    return pool


def open_pipeline(settings: Settings, checkpoint: Checkpoint) -> Pipeline:
    """Plan the memory and load one checkpoint, without an engine. Raises what `open_model_pool` raises."""
    plan = plan_for(settings, [network_sizes_on_disk(checkpoint)], available_memory(settings))
    return _open_pipeline(settings, placement_of(plan), checkpoint)


def limits_of(settings: Settings, memory_bytes: int) -> DeviceLimits:
    """Return the limits of a device with `memory_bytes` of working memory."""
    # If an operator sets the number of images in flight, no image is refused for being slow.
    max_slowdown = math.inf if settings.max_in_flight else SLOWDOWN_TARGET
    return DeviceLimits(
        settings.max_batch_rows, max_in_flight_of(settings), settings.max_wait_s, memory_bytes, max_slowdown
    )


def _open_pipeline(settings: Settings, placement: Placement, checkpoint: Checkpoint) -> Pipeline:
    """Open a checkpoint in the settings' backend with the planned placement."""
    options = Options(
        precision=settings.precision,
        device=settings.device,
        offload=placement.offload,
        threads=settings.threads,
        tiled_decode=placement.tiled_decode,
        torch_compile=settings.torch_compile,
        cache_dir=settings.cache_dir,
    )
    return Pipeline(checkpoint, open_backend(settings.backend, checkpoint, options))


def _open_into(engine: LocalEngine, open_first: Callable[[Checkpoint], Pipeline], checkpoint: Checkpoint) -> ModelInfo:
    """Open a checkpoint after its graphs or engines were built, and add it to the engine."""
    pipeline = open_first(checkpoint)
    engine.add(pipeline)
    return pipeline.info


def _open_built(
    open_first: Callable[[Checkpoint], Pipeline], checkpoints: Sequence[Checkpoint], fallbacks: Sequence[Pipeline]
) -> tuple[list[Pipeline], list[Checkpoint]]:
    """Return a pipeline for each checkpoint, and the checkpoints that are not built yet and use their fallback."""
    pipelines, pending = [], []
    for index, checkpoint in enumerate(checkpoints):
        try:
            pipelines.append(open_first(checkpoint))
        except NotCompiled:
            if not fallbacks:
                raise
            pipelines.append(fallbacks[index])
            pending.append(checkpoint)
    return pipelines, pending


def _check_profiles(settings: Settings, pipelines: Sequence[Pipeline], fallbacks: Sequence[Pipeline]) -> None:
    """Raise InvalidSetting if a fallback has the same profile as the pipeline that it replaces."""
    for pipeline, fallback in zip(pipelines, fallbacks, strict=bool(fallbacks)):
        profile = fallback.info.profile
        if pipeline is not fallback and pipeline.info.profile == profile:
            raise InvalidSetting(
                f"fallback: got {settings.fallback!r}, which is the main profile, {profile}; allowed: another"
            )
