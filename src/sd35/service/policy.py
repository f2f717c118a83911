"""The serving policy: how the service treats requests, jobs and images, from the settings."""

from dataclasses import dataclass

from sd35.content_filter import ContentFilter, load_filter
from sd35.generation.params import ModelAliases
from sd35.settings import Settings

_DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class ServingPolicy:
    """How the service treats requests, jobs and images.

    Attributes:
        content_filter: Allows, blurs or refuses prompts and images.
        aliases: Other names of the models, for clients of other services.
        has_metadata: Whether image files contain the record of how they were generated.
        redirects: Whether clients that download an image are redirected to a signed URL of the object store.
        retention_s: Seconds after which ended jobs are deleted. If None, they are never deleted.
        shutdown_grace_s: Seconds that running images have to finish when the service closes.
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
    """Build the policy from the settings. Raises InvalidSetting if the content filter cannot be used."""
    return ServingPolicy(
        load_filter(settings.content_filter),
        ModelAliases.of(settings.model_aliases, is_strict=settings.strict_dialects),
        has_metadata=settings.keep_metadata,
        redirects=settings.redirect_images,
        retention_s=settings.retention_days * _DAY_S or None,  # 0 days means no limit
        shutdown_grace_s=settings.shutdown_grace_s,
        max_running=max(1, max_in_flight_of(settings) // 2),  # the other half is for synchronous calls
        max_queued=settings.max_jobs,
    )


def max_in_flight_of(settings: Settings) -> int:
    """Return the maximum number of images in the engine: the setting `max_in_flight`, if it is set.

    Otherwise a quarter more than `max_batch_rows`, but at least 2 more. The next batch can then start without a
    pause, and no accepted image waits long.
    """
    return settings.max_in_flight or settings.max_batch_rows + max(2, settings.max_batch_rows // 4)
