"""The rules of serving, from the settings."""

from dataclasses import dataclass

from sd35.content_filter import ContentFilter, load_filter
from sd35.generation.params import ModelAliases
from sd35.settings import Settings

_DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class ServingPolicy:
    """How the service treats requests, jobs and images.

    Attributes:
        redirects: Whether clients are redirected to signed URLs of the object store.
        retention_s: How long ended jobs are kept. None keeps them.
        shutdown_grace_s: Time for running images to end when the service closes.
        max_running: Maximum number of jobs that run at once in this process.
        max_queued: Maximum number of jobs in the queue.
    """

    content_filter: ContentFilter
    aliases: ModelAliases
    has_metadata: bool = True
    redirects: bool = False
    retention_s: float | None = None
    shutdown_grace_s: float = 60
    max_running: int = 32
    max_queued: int = 10_000


def policy_of(settings: Settings) -> ServingPolicy:
    """Return the policy of the settings. Raises InvalidSetting."""
    return ServingPolicy(
        load_filter(settings.content_filter),
        ModelAliases.of(settings.model_aliases, is_strict=settings.strict_dialects),
        has_metadata=settings.keep_metadata,
        redirects=settings.redirect_images,
        retention_s=settings.retention_days * _DAY_S or None,
        shutdown_grace_s=settings.shutdown_grace_s,
        max_running=max(1, max_in_flight_of(settings) // 2),  # the other half is for synchronous calls
        max_queued=settings.max_jobs,
    )


def max_in_flight_of(settings: Settings) -> int:
    """Return the limit of images in flight: the setting, or a little more than a batch, so that none waits long."""
    return settings.max_in_flight or settings.max_batch_rows + max(2, settings.max_batch_rows // 4)
