"""Choose a checkpoint for `auto`: the best of SD3.5 Large and Medium that fits in memory.

The model must be on disk, or there must be a token to download it. If neither model is available, `auto` chooses the
embedded model, sd35-mini.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import structlog

from sd35.backends.registry import BACKENDS
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.hub import cache, download
from sd35.checkpoints.hub.environment import hub_token
from sd35.checkpoints.hub.plan import plan_download
from sd35.checkpoints.network_sizes import NetworkSizes, network_sizes_by_name, network_sizes_on_disk
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED, RegisteredCheckpoint, find_registered, load_registry
from sd35.errors import CheckpointError, DownloadFailed
from sd35.planning.fit import plan_for
from sd35.planning.plan import AvailableMemory
from sd35.planning.report import size_text
from sd35.settings import Settings

AUTO = "auto"
BEST_FIRST = ("sd3.5-large", "sd3.5-medium")
_WHY_STANDING_IN = (
    "no weights of SD3.5 are on disk, and there is no token to download them, or the setting offline is on. Turn"
    " offline off and set HF_TOKEN to a token of an account that accepted the licence, or put the weights in Hugging"
    " Face's cache (HF_HOME), and start again"
)


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that `auto` considers.

    Attributes:
        is_on_disk: Whether it can be served without a download.
        obstacle: The reason why it cannot be served, or None.
    """

    name: str
    is_on_disk: bool
    obstacle: str | None


def candidates(settings: Settings, available: AvailableMemory) -> Iterator[Candidate]:
    """Yield the candidates, best first. Does not use the network.

    The embedded model comes last, and only if no other candidate is on disk or can be downloaded. Raises InvalidSetting
    if the token or an environment variable of the library `huggingface_hub` is malformed.
    """
    is_any_available = False
    for name in BEST_FIRST:
        is_on_disk = cache.cache_status(find_registered(name, settings.registry)).is_complete
        why_unavailable = _why_unavailable(settings, is_on_disk=is_on_disk)
        is_any_available = is_any_available or not why_unavailable
        yield Candidate(name, is_on_disk, why_unavailable or _why_not_loadable(settings, name, available))
    if not is_any_available:
        yield Candidate(EMBEDDED, is_on_disk=True, obstacle=None)


def choose(settings: Settings, available: AvailableMemory) -> str:
    """Return the name of the best candidate that can be served, and download it if needed.

    Logs why better candidates cannot be served; the log entry is a warning if the embedded model is chosen. Raises
    CheckpointError, with all obstacles, if no candidate can be served, and the errors of `candidates`.
    """
    obstacles: list[str] = []
    for candidate in candidates(settings, available):
        name, obstacle = candidate.name, candidate.obstacle
        if obstacle is None and not candidate.is_on_disk:
            obstacle = _fetch(find_registered(name, settings.registry))
        if obstacle is None:
            _log_choice(name, obstacles)
            return name
        obstacles.append(f"{name}: {obstacle}")
    raise CheckpointError(no_candidate_message("checkpoints", obstacles))


def no_candidate_message(setting: str, obstacles: Sequence[str]) -> str:
    """Return the message of an error: no candidate can be served, and the obstacle of each."""
    return (
        f"{setting}: got {AUTO!r}, but none of its models can be served ({'; '.join(obstacles)}). Name another"
        f" checkpoint, such as {EMBEDDED}"
    )


def why_standing_in(settings: Settings, name: str) -> str | None:
    """Explain why `auto` serves the embedded model. Return None for other models, and if `auto` did not choose it."""
    is_requested = AUTO not in settings.checkpoints or EMBEDDED in settings.checkpoints
    return None if name != EMBEDDED or is_requested else _WHY_STANDING_IN


def network_sizes_of(name: str, settings: Settings) -> NetworkSizes:
    """Return the sizes of a checkpoint's networks.

    A registered checkpoint need not be on disk, unless the setting `weights` replaces some of its weights.

    Raises CheckpointError if any other checkpoint is missing or unusable, InvalidSetting if the registry is malformed.
    """
    registry = load_registry(settings.registry)
    if name in registry and not settings.weights and not cache.cache_status(registry[name]).is_complete:
        return network_sizes_by_name(registry[name])
    return network_sizes_on_disk(open_named(name, settings))


def open_named(name: str, settings: Settings) -> Checkpoint:
    """Open a checkpoint by name or path, with the registry and the files that the settings name.

    Raises CheckpointError if the checkpoint is missing or unusable, InvalidSetting if a setting does not apply to it.
    """
    return open_checkpoint(name, settings.registry, settings.weights, settings.base_checkpoint, settings.transformer)


def with_capable_backend(settings: Settings, checkpoint_sizes: Sequence[NetworkSizes]) -> Settings:
    """Return settings with a backend that can read the checkpoints and compute on the device.

    If the settings name a backend, return them unchanged. Also keep the default backend if all checkpoints have ONNX
    graphs and no setting names a CUDA device.
    """
    on_cuda = bool(settings.vram) or settings.device.startswith("cuda")
    # `auto` stands for SD3.5 models from the hub, which have no graphs.
    have_graphs = AUTO not in settings.checkpoints and all(sizes.has_graphs for sizes in checkpoint_sizes)
    if "backend" in settings.model_fields_set or (have_graphs and not on_cuda):
        return settings
    capable = (
        name
        for name, spec in BACKENDS.items()
        if ("cuda" in spec.devices or not on_cuda) and (have_graphs or not spec.needs_graphs)
    )
    return settings.model_copy(update={"backend": next(capable)})


def _log_choice(name: str, passed_over: list[str]) -> None:
    """Log the chosen checkpoint, and the obstacles of better ones."""
    log = structlog.get_logger()
    if name == EMBEDDED:
        log.warning("auto found no SD3.5", checkpoint=name, remedy=_WHY_STANDING_IN, passed_over=passed_over)
    else:
        log.info("auto chose a checkpoint", checkpoint=name, passed_over=passed_over)


def _why_unavailable(settings: Settings, *, is_on_disk: bool) -> str | None:
    """Return the reason why a checkpoint can be neither loaded nor downloaded, or None."""
    if is_on_disk:
        return None
    if settings.offline:
        return "it is not on disk, and the setting offline is on"
    if hub_token() is None:
        return "it is not on disk, and there is no token to download it (set HF_TOKEN, or run `hf auth login`)"
    return None


def _why_not_loadable(settings: Settings, name: str, available: AvailableMemory) -> str | None:
    """Return why a candidate cannot be loaded: it lacks graphs that the backend needs, or does not fit in memory.

    Return None if it can be loaded. Only the last candidate may use sequential offload, because with it a candidate is
    much slower than the next one without it.
    """
    network_sizes = network_sizes_of(name, settings)
    if BACKENDS[settings.backend].needs_graphs and not network_sizes.has_graphs:
        return f"it has no ONNX graphs, which the backend {settings.backend} needs (choose another --backend)"
    plan = plan_for(settings, [network_sizes], available)
    is_last = name == BEST_FIRST[-1]
    allowed = [placement for placement in plan.placements if is_last or placement.offload != "sequential"]
    if any(placement.fits(available) for placement in allowed):
        return None
    least = min(placement.needed_bytes for placement in allowed)
    needed, free = size_text(least), size_text(available.device_bytes)
    if available.device == "cuda" and available.host_bytes is not None:
        # All placements need the same host memory.
        needed += f" of device memory and {size_text(allowed[0].host_bytes)} of host memory"
        free += f" and {size_text(available.host_bytes)}"
    return f"it needs {needed}, but only {free} are available"


def _fetch(registered: RegisteredCheckpoint) -> str | None:
    """Download a checkpoint. Return None, or the reason if the download fails."""
    log = structlog.get_logger()
    try:
        plan = plan_download(registered)
        log.info("downloading a checkpoint", checkpoint=registered.name, missing_bytes=plan.missing_bytes)
        download.fetch(plan, lambda _: None)
    except (DownloadFailed, CheckpointError) as error:
        return str(error)
    return None
