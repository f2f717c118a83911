"""A webhook sender with a store, a clock and a name server that tests control."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from sd35.jobs.webhooks.sender import Body, Sender
from sd35.jobs.webhooks.transport import Lookup, PublicTransport, Resolver
from sd35.storage.jobs import Delivery, Job, JobStore, new_job
from sd35.storage.memory.jobs import MemoryJobStore
from sd35.telemetry.metrics import WebhookResult
from tests.support.job_specs import job_spec

SECRET = bytes(range(32))
NAME = "hooks.example"  # not known to any name server


@dataclass
class Sending:
    """A sender with its store and its clock. `results` has the result of each attempt."""

    store: JobStore = field(default_factory=MemoryJobStore)
    now_s: float = 1_000.0
    allow_private: bool = True
    resolved: list[str] = field(default_factory=list)
    results: list[WebhookResult] = field(default_factory=list)
    addresses: list[str] = field(default_factory=lambda: ["127.0.0.1"])

    def __post_init__(self) -> None:
        self.lookup: Lookup = self._look_up
        self.bodies: Body = self._body_of

    def end_job(self, url: str, owner: str = "me") -> Job:
        """Add a job that has ended and whose webhook is due."""
        job = self.store.add(new_job(job_spec(owner, webhook=url), self.now_s))
        self.store.cancel(job.id, None, self.now_s)
        return job

    def send(self) -> int:
        """Send all due webhooks once, wait for them, and return the number that was due."""

        async def scenario() -> int:
            due = sum(one.count for one in self.store.due_webhooks(self.now_s))
            async with self.sender() as sender, asyncio.TaskGroup() as sending:
                await sender.start_due(sending)
            return due

        return asyncio.run(scenario())

    @asynccontextmanager
    async def sender(self) -> AsyncIterator[Sender]:
        """Create a sender that the test runs itself."""
        transport = PublicTransport(Resolver(self.lookup), allow_private=self.allow_private)
        sender = Sender(self.store, self.bodies, SECRET, transport, lambda: self.now_s)
        sender.on_result = self.results.append
        yield sender
        await transport.aclose()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Sender]:
        """Run a sender until the context closes."""
        async with self.sender() as sender:
            task = asyncio.create_task(sender.run())
            try:
                yield sender
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def _body_of(self, job_id: str) -> bytes | None:
        """Return the body sent for a job."""
        return json.dumps({"id": job_id}).encode() if self.store.get(job_id, None) else None

    def _look_up(self, host: str) -> list[str]:
        """Resolve a name with the test's name server."""
        self.resolved.append(host)
        return self.addresses

    def pending(self) -> list[Delivery]:
        """Return all webhooks that are not delivered yet."""
        return self.store.claim_webhooks(1e12, {one.receiver: 99 for one in self.store.due_webhooks(1e12)})
