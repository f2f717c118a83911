"""From settings to an engine with its models: the only module that knows which engine serves."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

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
from sd35.planning.plan import AvailableMemory, Placement
from sd35.service.policy import max_in_flight_of
from sd35.service.startup_times import StartupTimes
from sd35.settings import Settings

OnPlan: TypeAlias = Callable[[AvailableMemory, Sequence[Placement]], None]

_MB = 10**6
FREE_MEMORY_SHARE = 0.9  # the rest is for uncounted memory: latents, images being encoded, other processes


def check_backends(settings: Settings) -> None:
    """Raise InvalidSetting or BackendUnavailable if the backend or the fallback's cannot run here. Imports neither."""
    check_available(settings.backend)
    if settings.fallback_settings:
        check_available(settings.fallback_settings.backend, "fallback")


def open_checkpoints(settings: Settings) -> list[Checkpoint]:
    """Open the checkpoints of the settings. `auto` is replaced by the best one, which is downloaded if needed.

    Raises CheckpointError, InvalidSetting if two have the same name or `weights` are given for several checkpoints, and
    for `auto` BackendUnavailable.
    """
    if settings.weights and len(settings.checkpoints) > 1:
        raise InvalidSetting(f"weights: got files for {len(settings.checkpoints)} checkpoints; allowed: one checkpoint")
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
    on_plan: OnPlan | None = None,
    *,
    with_fallback: bool = False,
) -> ModelPool:
    """Plan the memory, load the checkpoints as planned, and generate a first image with each. Takes seconds to minutes.

    Args:
        settings: All settings of the models.
        checkpoints: The checkpoints to load.
        startup: Receives the time of each phase.
        on_plan: Called before anything is loaded, with the available memory and the chosen placements: of the backend,
            and of the fallback, if any.
        with_fallback: Whether to load the settings' fallback too. It answers for checkpoints whose graphs or engines
            are not built yet. The pool's `fallback_builder`, once started, builds them.

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
    if on_plan:
        on_plan(room, [first, second] if second else [first])
    fallbacks = [_open_pipeline(fallback, second, each) for each in checkpoints] if fallback and second else []
    open_first = partial(_open_pipeline, settings, first)
    pipelines, pending = _open_or_fall_back(open_first, checkpoints, fallbacks)
    _check_profiles(settings, pipelines, fallbacks)
    for pipeline in {*pipelines, *fallbacks}:
        startup.add(pipeline.backend.startup_s)
    # Networks that are built later need memory too: they are placed already, and working memory is the rest.
    to_be_built_bytes = first.weights_bytes if pending else 0
    unplanned_bytes = room.device_bytes - first.weights_bytes - (second.weights_bytes if second else 0)
    free_bytes = min(pipelines[0].backend.memory.free_bytes() - to_be_built_bytes, unplanned_bytes)
    tokenizers = {each.name: Tokenizers(each) for each in checkpoints}
    engine = LocalEngine(
        [*pipelines, *fallbacks],
        limits_of(settings, settings.memory_mb * _MB or int(FREE_MEMORY_SHARE * free_bytes)),
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
    # An operator who sets `max_in_flight` accepts the slowdown that it causes.
    max_slowdown = math.inf if settings.max_in_flight else SLOWDOWN_TARGET
    return DeviceLimits(
        settings.max_batch_rows, max_in_flight_of(settings), settings.max_wait_s, memory_bytes, max_slowdown
    )


def _open_pipeline(settings: Settings, placement: Placement, checkpoint: Checkpoint) -> Pipeline:
    """Open a checkpoint in the settings' backend, placed as planned."""
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
    """Open a checkpoint whose graphs or engines are built now, and add it to the engine."""
    pipeline = open_first(checkpoint)
    engine.add(pipeline)
    return pipeline.info


def _open_or_fall_back(
    open_first: Callable[[Checkpoint], Pipeline], checkpoints: Sequence[Checkpoint], fallbacks: Sequence[Pipeline]
) -> tuple[list[Pipeline], list[Checkpoint]]:
    """Open each checkpoint, or use the pipeline of its fallback if it is not built yet.

    Return a pipeline for each checkpoint, and the checkpoints that are not built yet.
    """
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
    """Raise InvalidSetting if a fallback computes in the same profile as the first backend."""
    for pipeline, fallback in zip(pipelines, fallbacks, strict=bool(fallbacks)):
        profile = fallback.info.profile
        if pipeline is not fallback and pipeline.info.profile == profile:
            raise InvalidSetting(
                f"fallback: got {settings.fallback!r}; allowed: another profile than that of the backend, {profile}"
            )
