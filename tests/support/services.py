"""A complete service over a model pool, with storage in memory."""

from functools import partial
from typing import Any

from sd35.api.jobs import job_body
from sd35.generation.model_pool import ModelPool
from sd35.jobs.webhooks.webhooks import Webhooks
from sd35.service.policy import policy_of
from sd35.service.service import Service
from sd35.settings import load_settings
from sd35.storage.blobs.memory import MemoryBlobStore
from sd35.storage.database import open_database
from sd35.storage.images import ImageStore
from sd35.storage.links import Links
from sd35.storage.retention import Retention
from sd35.storage.storage import Storage
from sd35.telemetry.telemetry import Telemetry


def memory_storage() -> Storage:
    """Create storage that keeps everything in memory."""
    database = open_database("memory")
    return Storage(database, ImageStore(MemoryBlobStore(), database.ownership), Links(b"a secret"))


def service_of(
    pool: ModelPool, storage: Storage | None = None, telemetry: Telemetry | None = None, **given: Any
) -> Service:
    """Create the service as `sd35 serve` does. `given` are settings."""
    settings, storage = load_settings(given), storage or memory_storage()
    retention = Retention.from_settings(settings, storage.images)
    webhooks = Webhooks(settings, storage.database.jobs, partial(job_body, storage.database.jobs))
    return Service(pool, storage, policy_of(settings), retention, webhooks, telemetry)
