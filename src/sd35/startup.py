"""Open checkpoints, a backend and an engine from settings. Only this module knows the class of the engine."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from sd35.backends.options import DeviceKind, Options
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
from sd35.planning.fit import available_memory, check_fallback, other_fallbacks, place_fallback, placement_of, plan_for
from sd35.planning.plan import AvailableMemory, Placement
from sd35.service.policy import max_in_flight_of
from sd35.service.startup_times import StartupTimes
from sd35.settings import Settings

OnPlan: TypeAlias = Callable[[AvailableMemory, Sequence[Placement]], None]

_MB = 10**6
FREE_MEMORY_SHARE = 0.9  # the other tenth is for memory that is not counted: latents, PNG encoding, other processes


def check_backends(settings: Settings) -> None:
    """Check that the backends of the settings can run here: `backend` and `fallback`. Imports no runtime.

    Raises InvalidSetting if a backend does not exist, BackendUnavailable if it cannot run here.
    """
    check_available(settings.backend)
    if settings.fallback_settings:
        check_available(settings.fallback_settings.backend, "fallback")


def open_checkpoints(settings: Settings) -> list[Checkpoint]:
    """Open the checkpoints of the settings. For `auto`, choose the best checkpoint, and download it if needed.

    Raises:
        CheckpointError: A checkpoint is missing or unusable, or `auto` finds none.
        InvalidSetting: Two checkpoints have the same name, or `weights` is set for several checkpoints.
        BackendUnavailable: The backend cannot run here. Only for `auto`, which needs the backend's memory.
    """
    if settings.weights and len(settings.checkpoints) > 1:
        raise InvalidSetting(f"weights: allowed only with one checkpoint; got {len(settings.checkpoints)} checkpoints")
    names = [choose(settings, available_memory(settings)) if name == AUTO else name for name in settings.checkpoints]
    if AUTO in settings.checkpoints:
        names = list(dict.fromkeys(names))  # `auto` may choose a checkpoint that the settings also name
    checkpoints = [open_named(name, settings) for name in names]
    opened = [checkpoint.name for checkpoint in checkpoints]
    if repeated := sorted({name for name in opened if opened.count(name) > 1}):
        raise InvalidSetting(
            f"checkpoints: got {', '.join(repeated)} more than once; name each checkpoint once, or rename a directory"
            " if two have the same name"
        )
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
        settings: The settings of the models, of the memory and of the limits.
        checkpoints: The checkpoints to load.
        startup: Receives the time of each phase.
        on_plan: Called before anything is loaded, with the available memory and the chosen placements: that of the
            backend, and that of the fallback if it is loaded.
        with_fallback: Whether to load the fallback of the settings too, if they have one. The fallback generates images
            for checkpoints whose graphs or engines are not built yet. The pool's `fallback_builder` builds these after
            its `start` was called.

    Raises:
        DoesNotFit: There is not enough memory.
        CheckpointError: A checkpoint is unusable, or must be compiled first and no fallback is loaded (NotCompiled).
        BackendUnavailable: The backend or the fallback cannot run here.
        InvalidSetting: The backend does not support a setting, or the fallback computes as the backend does.
        GenerationFailed: A first image failed.
    """
    startup = startup or StartupTimes()
    fallback = settings.fallback_settings if with_fallback else None
    with startup.phase("import"):
        available = available_memory(settings)
        if fallback:
            check_fallback(settings, fallback, available)
    with startup.phase("plan"):
        all_network_sizes = [network_sizes_on_disk(checkpoint) for checkpoint in checkpoints]
        plan = plan_for(settings, all_network_sizes, available)
        first = placement_of(plan)
        second = place_fallback(fallback, all_network_sizes, plan) if fallback else None
    if on_plan:
        on_plan(available, [first, second] if second else [first])
    fallbacks = [_open_pipeline(fallback, second, each) for each in checkpoints] if fallback and second else []
    open_first = partial(_open_pipeline, settings, first)
    pipelines, pending = _open_or_fall_back(open_first, checkpoints, fallbacks)
    _check_profiles(settings, available.device, pipelines, fallbacks)
    for pipeline in {*pipelines, *fallbacks}:  # a set, because a fallback's pipeline may be in both lists
        startup.add(pipeline.backend.startup_s)
    # Checkpoints that are not built yet will be loaded later, so their memory is free now but must stay free.
    to_be_built_bytes = first.weights_bytes if pending else 0
    unplanned_bytes = available.device_bytes - first.weights_bytes - (second.weights_bytes if second else 0)
    free_bytes = min(pipelines[0].backend.memory.free_bytes() - to_be_built_bytes, unplanned_bytes)
    tokenizers = {checkpoint.name: Tokenizers(checkpoint) for checkpoint in checkpoints}
    engine = LocalEngine(
        [*pipelines, *fallbacks],
        limits_of(settings, settings.memory_mb * _MB or int(FREE_MEMORY_SHARE * free_bytes)),
        EmbeddingCache(settings.embedding_cache_mb * _MB),
        reproducible=settings.reproducible,
    )
    pool = ModelPool(engine, tokenizers, settings.max_pixels)
    if pending:
        open_later = partial(_open_and_add, engine, open_first)
        pool.fallback_builder = FallbackBuilder(pending, partial(command_of, settings), open_later, pool.swap)
    try:
        with startup.phase("warm"):
            pool.warm_up()
    except BaseException:
        engine.close()
        raise
    return pool


def open_pipeline(settings: Settings, checkpoint: Checkpoint) -> Pipeline:
    """Plan the memory and load one checkpoint, without an engine. Raises the errors of `open_model_pool`."""
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
    """Open a checkpoint in the backend of the settings, with the offload and tiling of a placement."""
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


def _open_and_add(
    engine: LocalEngine, open_first: Callable[[Checkpoint], Pipeline], checkpoint: Checkpoint
) -> ModelInfo:
    """Open a checkpoint after its graphs or engines were built, add it to the engine, and return its model."""
    pipeline = open_first(checkpoint)
    engine.add(pipeline)
    return pipeline.info


def _open_or_fall_back(
    open_first: Callable[[Checkpoint], Pipeline], checkpoints: Sequence[Checkpoint], fallbacks: Sequence[Pipeline]
) -> tuple[list[Pipeline], list[Checkpoint]]:
    """Open each checkpoint in the first backend. If it is not built yet, use its pipeline in the fallback instead.

    Return a pipeline for each checkpoint, and the checkpoints that are not built yet. Raises NotCompiled if
    `fallbacks` is empty.
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


def _check_profiles(
    settings: Settings, device: DeviceKind, pipelines: Sequence[Pipeline], fallbacks: Sequence[Pipeline]
) -> None:
    """Raise InvalidSetting if a fallback computes exactly as the first backend does.

    `check_fallback` compares only settings. A profile is known after loading: it names the precision that "fp8" stands
    for on this device, and everything else that changes pixels.
    """
    for pipeline, fallback in zip(pipelines, fallbacks, strict=bool(fallbacks)):  # empty without a fallback
        profile = fallback.info.profile
        if pipeline is not fallback and pipeline.info.profile == profile:
            refused = (f"{settings.backend}/{settings.precision}", str(settings.fallback), profile)
            raise InvalidSetting(
                f"fallback: got {settings.fallback!r}, which computes in {profile} as the backend does; allowed:"
                f" {', '.join(other_fallbacks(device, *refused))}"
            )
