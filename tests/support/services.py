"""A whole service around a studio, with stores that end with the process."""

from functools import partial
from typing import Any

from sd35.api.jobs import job_body
from sd35.generation.model_pool import Studio
from sd35.jobs.webhooks.webhooks import Webhooks
from sd35.service.service import Service
from sd35.service.startup import rules_of
from sd35.settings import load_settings
from sd35.storage.blobs.memory import MemoryStore
from sd35.storage.database import open_stores
from sd35.storage.images import Holdings
from sd35.storage.links import Links
from sd35.storage.retention import Retention
from sd35.storage.storage import Kept
from sd35.telemetry.report import Telemetry


def memory_kept() -> Kept:
    """Nothing that outlives the process."""
    stores = open_stores("memory")
    return Kept(stores, Holdings(MemoryStore(), stores.pictures), Links(b"a secret"))


def service_of(studio: Studio, kept: Kept | None = None, telemetry: Telemetry | None = None, **given: Any) -> Service:
    """The service as `sd35 serve` composes it, with settings that are given."""
    settings, kept = load_settings(given), kept or memory_kept()
    retention = Retention.of(settings, kept.pictures)
    webhooks = Webhooks(settings, kept.stores.jobs, partial(job_body, kept.stores.jobs))
    return Service(studio, kept, rules_of(settings), retention, webhooks, telemetry)
