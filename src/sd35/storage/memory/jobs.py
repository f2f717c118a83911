"""Job store in memory, for tests and for services that need no jobs after a restart."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter

from sd35.errors import IdempotencyConflict
from sd35.storage.fair_claim import Candidate, choose_fairly
from sd35.storage.jobs import (
    WEBHOOK_LEASE_S,
    Delivery,
    DueWebhooks,
    Failure,
    Job,
    JobResult,
    JobSpec,
    Receiver,
    Status,
)


@dataclass(eq=False)
class _Entry:
    """A job with its lease and its webhook.

    Attributes:
        job: State of the job.
        holder: ID of the job runner that holds the lease. None without a lease.
        lease_until_s: When the lease expires, by the monotonic clock in seconds.
        due_s: When the webhook is due, in seconds since 1970. None if no webhook is to be sent.
        attempts: Number of failed attempts to send the webhook.
    """

    job: Job
    holder: str | None = None
    lease_until_s: float = 0.0
    due_s: float | None = None
    attempts: int = 0

    @cached_property
    def receiver(self) -> Receiver:
        """Receiver of the webhook."""
        return Receiver.from_url(self.job.spec.owner, self.job.spec.webhook or "")

    @property
    def urgency(self) -> tuple[int, int]:
        """Sort key of queued jobs: lower for a higher priority, then for an older job."""
        return -self.job.spec.priority, self.job.number

    def update(self, job: Job, due_s: float | None = None) -> Job:
        """Replace the job and return it. Ends the lease, and makes the webhook due at `due_s` if the job has one."""
        self.job, self.holder = job, None
        self.due_s = due_s if job.spec.webhook else None
        return job

    def requeue(self) -> None:
        """End the lease and queue the job again."""
        self.update(replace(self.job, status=Status.QUEUED, started_s=None))


class MemoryJobStore:
    """A JobStore in memory. Its jobs are lost when the process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._last_number = 0

    def add(self, job: Job) -> Job:
        """Store a new job, or return the owner's job with the same idempotency key.

        Raises IdempotencyConflict if that job has another body.
        """
        assert job.status is Status.QUEUED
        with self._lock:
            existing = self._with_same_key(job.spec)
            if existing:
                if existing.spec.body_digest != job.spec.body_digest:
                    raise IdempotencyConflict(str(job.spec.idempotency_key))
                return existing
            self._last_number += 1
            job = replace(job, number=self._last_number)
            self._entries[job.id] = _Entry(job)
            return job

    def get(self, job_id: str, owner: str | None) -> Job | None:
        """Return a job, or None if it is missing."""
        with self._lock:
            entry = self._find(job_id, owner)
            return entry.job if entry else None

    def page(self, owner: str | None, statuses: Sequence[Status], before: int | None, limit: int) -> list[Job]:
        """Return up to `limit` jobs, newest first."""
        with self._lock:
            matching = [
                entry.job
                for entry in reversed(self._entries.values())
                if owner in {None, entry.job.spec.owner}
                and (not statuses or entry.job.status in statuses)
                and (before is None or entry.job.number < before)
            ]
            return matching[:limit]

    def position(self, job_id: str) -> int:
        """Return the number of jobs ahead of a queued job. Returns 0 if the job is not queued."""
        with self._lock:
            entry = self._entries.get(job_id)
            if entry is None or entry.job.status is not Status.QUEUED:
                return 0
            return sum(other.urgency < entry.urgency for other in self._with_status(Status.QUEUED))

    def claim(self, holder: str, started_s: float, lease_s: float, limit: int) -> list[Job]:
        """Queue the jobs of other holders again if their leases have expired, then claim up to `limit` queued jobs."""
        with self._lock:
            now_s = time.monotonic()
            for entry in self._entries.values():
                if entry.holder not in {None, holder} and entry.lease_until_s < now_s:
                    entry.requeue()
            running = Counter(entry.job.spec.owner for entry in self._with_status(Status.RUNNING))
            queued = {entry.job.number: entry for entry in self._with_status(Status.QUEUED)}
            candidates = [
                Candidate(entry.job.spec.owner, entry.job.spec.priority, number) for number, entry in queued.items()
            ]
            claimed = []
            for candidate in choose_fairly(candidates, running, limit):
                entry = queued[candidate.number]
                claimed.append(entry.update(replace(entry.job, status=Status.RUNNING, started_s=started_s)))
                entry.holder, entry.lease_until_s = holder, now_s + lease_s
            return claimed

    def renew(self, holder: str, lease_s: float) -> set[str]:
        """Renew all leases of `holder`. Returns the IDs of the jobs that it still holds."""
        with self._lock:
            until_s = time.monotonic() + lease_s
            held = self._held(holder)
            for entry in held:
                entry.lease_until_s = until_s
            return {entry.job.id for entry in held}

    def release(self, holder: str) -> int:
        """Queue all jobs of `holder` again, and end their leases. Returns their number."""
        with self._lock:
            held = self._held(holder)
            for entry in held:
                entry.requeue()
            return len(held)

    def end(self, job_id: str, holder: str, ended_s: float, result: JobResult | Failure) -> bool:
        """End a job and make its webhook due. Returns False if `holder` does not hold the job."""
        with self._lock:
            entry = self._entries.get(job_id)
            if entry is None or entry.holder != holder:
                return False
            if isinstance(result, JobResult):
                ended = replace(entry.job, status=Status.SUCCEEDED, ended_s=ended_s, result=result)
            else:
                ended = replace(entry.job, status=Status.FAILED, ended_s=ended_s, failure=result)
            entry.update(ended, due_s=ended_s)
            return True

    def cancel(self, job_id: str, owner: str | None, now_s: float) -> Job | None:
        """Cancel a job, unless it has ended. Returns the job, or None if it is missing."""
        with self._lock:
            entry = self._find(job_id, owner)
            if entry and not entry.job.status.is_end:
                entry.update(replace(entry.job, status=Status.CANCELLED, ended_s=now_s), due_s=now_s)
            return entry.job if entry else None

    def delete(self, job_id: str, owner: str | None) -> Job | None:
        """Delete a job that has ended. Returns the deleted job, or None if it is missing or has not ended."""
        with self._lock:
            entry = self._find(job_id, owner)
            if entry is None or not entry.job.status.is_end:
                return None
            del self._entries[job_id]
            return entry.job

    def counts(self) -> Mapping[Status, int]:
        """Return the number of jobs of each status."""
        with self._lock:
            return dict.fromkeys(Status, 0) | Counter(entry.job.status for entry in self._entries.values())

    def due_webhooks(self, now_s: float) -> list[DueWebhooks]:
        """Count the due webhooks of each receiver."""
        with self._lock:
            due_times: dict[Receiver, list[float]] = defaultdict(list)
            for due_s, _, entry in self._due(now_s):
                due_times[entry.receiver].append(due_s)
            return [DueWebhooks(receiver, len(times_s), min(times_s)) for receiver, times_s in due_times.items()]

    def claim_webhooks(self, now_s: float, limits: Mapping[Receiver, int]) -> list[Delivery]:
        """Claim up to `limits[receiver]` due webhooks of each receiver for `WEBHOOK_LEASE_S`."""
        with self._lock:
            remaining, claimed = Counter(limits), []
            for *_, entry in sorted(self._due(now_s), key=itemgetter(0, 1)):  # by due time, then by job ID
                if remaining[entry.receiver] > 0:
                    remaining[entry.receiver] -= 1
                    entry.due_s = now_s + WEBHOOK_LEASE_S
                    url = entry.job.spec.webhook or ""
                    claimed.append(Delivery(entry.job.id, url, entry.attempts, entry.receiver))
            return claimed

    def finish_webhook(self, job_id: str) -> None:
        """Delete a webhook, because it was delivered or its last attempt failed."""
        with self._lock:
            if entry := self._entries.get(job_id):
                entry.due_s = None

    def postpone_webhook(self, job_id: str, until_s: float) -> None:
        """Count a failed attempt to send a webhook, and make the webhook due again at `until_s`."""
        with self._lock:
            entry = self._entries.get(job_id)
            if entry and entry.due_s is not None:
                entry.due_s, entry.attempts = until_s, entry.attempts + 1

    def redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Set the end times of jobs between `from_s` and `until_s` to `now_s`. `until_s=None` means no upper bound."""
        with self._lock:
            for entry in self._entries.values():
                ended_s = entry.job.ended_s
                if ended_s is not None and from_s <= ended_s and (until_s is None or ended_s <= until_s):
                    entry.job = replace(entry.job, ended_s=now_s)

    def sweep(self, ended_before_s: float) -> int:
        """Delete jobs that ended before `ended_before_s`. Returns their number."""
        with self._lock:
            old = [
                job_id
                for job_id, entry in self._entries.items()
                if entry.job.ended_s is not None and entry.job.ended_s < ended_before_s
            ]
            for job_id in old:
                del self._entries[job_id]
            return len(old)

    def close(self) -> None:
        """Do nothing: memory has no connections."""

    def _with_same_key(self, spec: JobSpec) -> Job | None:
        """Return the owner's job with the idempotency key of `spec`, or None."""
        if spec.idempotency_key is None:
            return None
        for entry in self._entries.values():
            other = entry.job.spec
            if (other.owner, other.idempotency_key) == (spec.owner, spec.idempotency_key):
                return entry.job
        return None

    def _find(self, job_id: str, owner: str | None) -> _Entry | None:
        """Return the entry of a job, or None if it is missing or belongs to another owner."""
        entry = self._entries.get(job_id)
        return entry if entry and owner in {None, entry.job.spec.owner} else None

    def _with_status(self, status: Status) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.job.status is status]

    def _due(self, now_s: float) -> list[tuple[float, str, _Entry]]:
        """Return the due time, job ID and entry of each due webhook."""
        return [
            (entry.due_s, entry.job.id, entry)
            for entry in self._entries.values()
            if entry.due_s is not None and entry.due_s <= now_s
        ]

    def _held(self, holder: str) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.holder == holder]
