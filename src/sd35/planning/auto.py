"""`auto`: the best of SD3.5 Large and Medium that the memory, and the weights or the token at hand, allow.

Where there is neither a weight nor a token, the embedded model stands in, and that is said aloud.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.hub import cache, download
from sd35.checkpoints.hub.environment import hub_token
from sd35.checkpoints.hub.plan import plan_download
from sd35.checkpoints.network_sizes import NetworkSizes, network_sizes_by_name, network_sizes_on_disk
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED, RegisteredCheckpoint, find_registered, load_registry
from sd35.errors import CheckpointError, DownloadFailed
from sd35.planning.fit import plan_for
from sd35.planning.footprint import RUNTIMES
from sd35.planning.plan import AvailableMemory
from sd35.planning.report import size_text
from sd35.settings import Settings

AUTO = "auto"
BEST_FIRST = ("sd3.5-large", "sd3.5-medium")
_STANDING_IN = (
    "it stands in for SD3.5: neither weights nor a token to fetch them with were found. Set HF_TOKEN, of an account"
    " that accepted the licence, or put the weights into Hugging Face's cache (HF_HOME), and start again"
)


@dataclass(frozen=True)
class Candidate:
    """One of them. `obstacle`: why it cannot be served; None where it can, once it is fetched if not `is_on_disk`."""

    name: str
    is_on_disk: bool
    obstacle: str | None


def candidates(settings: Settings, room: AvailableMemory) -> Iterator[Candidate]:
    """The best first, judged by what is here: fetches nothing, asks no one. Where none is at hand, one stands in.

    Raises InvalidSetting if the token, or a variable of the hub's library, cannot be used.
    """
    is_any_at_hand = False
    for name in BEST_FIRST:
        is_on_disk = cache.cache_status(find_registered(name, settings.registry)).is_complete
        out_of_reach = _at_hand(settings, is_on_disk=is_on_disk)
        is_any_at_hand = is_any_at_hand or not out_of_reach
        yield Candidate(name, is_on_disk, out_of_reach or _fits(settings, name, room))
    if not is_any_at_hand:
        yield Candidate(EMBEDDED, is_on_disk=True, obstacle=None)


def choose(settings: Settings, room: AvailableMemory) -> str:
    """The name of the best, which is on disk now: it is fetched where a token allows that. Logs what was passed over.

    That nothing is at hand is a warning. Raises CheckpointError with all obstacles where there is none, InvalidSetting.
    """
    obstacles: list[str] = []
    for candidate in candidates(settings, room):
        name, obstacle = candidate.name, candidate.obstacle
        if obstacle is None and not candidate.is_on_disk:
            obstacle = _fetch(find_registered(name, settings.registry))
        if obstacle is None:
            _tell(name, obstacles)
            return name
        obstacles.append(f"{name}: {obstacle}")
    raise CheckpointError(f"checkpoints: {AUTO} finds none to serve; {'; '.join(obstacles)}")


def why_standing_in(settings: Settings, name: str) -> str | None:
    """Why a model that is served stands in for what `auto` found none of, and what to do; None where it does not."""
    is_asked_for = AUTO not in settings.checkpoints or EMBEDDED in settings.checkpoints
    return None if name != EMBEDDED or is_asked_for else _STANDING_IN


def network_sizes_of(name: str, settings: Settings) -> NetworkSizes:
    """Of a checkpoint as settings name it, on disk or not. Raises CheckpointError, InvalidSetting."""
    registry = load_registry(settings.registry)
    if name in registry and not settings.weights and not cache.cache_status(registry[name]).is_complete:
        return network_sizes_by_name(registry[name])
    return network_sizes_on_disk(open_named(name, settings))


def open_named(name: str, settings: Settings) -> Checkpoint:
    """A checkpoint as settings name it, with what they say of its files. Raises CheckpointError, InvalidSetting."""
    return open_checkpoint(name, settings.registry, settings.weights, settings.base_checkpoint, settings.transformer)


def _tell(name: str, passed_over: list[str]) -> None:
    log = structlog.get_logger()
    if name == EMBEDDED:
        log.warning("auto found no SD3.5", checkpoint=name, remedy=_STANDING_IN, passed_over=passed_over)
    else:
        log.info("auto", checkpoint=name, passed_over=passed_over)


def _at_hand(settings: Settings, *, is_on_disk: bool) -> str | None:
    if is_on_disk:
        return None
    if settings.offline:
        return "it is not on disk, and SD35_OFFLINE is set"
    if hub_token() is None:
        return "it is not on disk, and there is no token to fetch it with (HF_TOKEN, or `hf auth login`)"
    return None


def _fits(settings: Settings, name: str, room: AvailableMemory) -> str | None:
    """Why it does not fit. What has a smaller one after it is not streamed: that one is quicker by far."""
    network_sizes = network_sizes_of(name, settings)
    if RUNTIMES[settings.backend, room.device].needs_graphs and not network_sizes.has_graphs:
        return f"it has no ONNX graphs, which is all that {settings.backend} reads; see --backend"
    plan = plan_for(settings, [network_sizes], room)
    is_last = name == BEST_FIRST[-1]
    allowed = [each for each in plan.placements if is_last or each.offload != "sequential"]
    if any(placement.fits(room) for placement in allowed):
        return None
    least = min(placement.needed_bytes for placement in allowed)
    host = f" (and {size_text(allowed[0].host_bytes)} of the host's)" if room.device == "cuda" else ""
    return f"it needs {size_text(least)}{host}, and {size_text(room.device_bytes)} are there"


def _fetch(registered: RegisteredCheckpoint) -> str | None:
    """Fetch it; why that failed, or None."""
    log = structlog.get_logger()
    try:
        plan = plan_download(registered)
        log.info("fetching", checkpoint=registered.name, missing_bytes=plan.missing_bytes)
        download.fetch(plan, lambda _: None)
    except (DownloadFailed, CheckpointError) as error:
        return str(error)
    return None
