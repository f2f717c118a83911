"""Jobs in memory: for tests, and for a service whose jobs need not outlive it."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter

from sd35.errors import IdempotencyConflict
from sd35.storage.fair_claim import Candidate, fairest
from sd35.storage.jobs import HELD_S, Delivery, DueWebhooks, Failure, Job, JobResult, Receiver, Status
from sd35.storage.webhook_hosts import host_of


@dataclass(eq=False)
class _Kept:
    """A job, who works on it until when, and when its webhook is due."""

    job: Job
    holder: str | None = None
    lease_until_s: float = 0.0
    due_s: float | None = None
    attempts: int = 0

    def is_visible_to(self, owner: str | None) -> bool:
        return owner is None or self.job.job_spec.owner == owner

    @cached_property
    def receiver(self) -> Receiver:
        """Who gets its webhook."""
        return Receiver(self.job.job_spec.owner, host_of(self.job.job_spec.webhook or ""))

    def become(self, job: Job, due_s: float | None = None) -> Job:
        """Nobody works on it any more; its webhook, if there is one, is due."""
        self.job, self.holder = job, None
        self.due_s = due_s if job.job_spec.webhook else None
        return job


class MemoryJobStore:
    """A JobStore."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._last = 0

    def add(self, job: Job) -> Job:
        """Keep a new job, or find that of the same idempotency key. Raises IdempotencyConflict."""
        assert job.status is Status.QUEUED
        job_spec = job.job_spec
        with self._lock:
            for same in self._kept.values() if job_spec.idempotency_key is not None else ():
                if (same.job.job_spec.owner, same.job.job_spec.idempotency_key) == (
                    job_spec.owner,
                    job_spec.idempotency_key,
                ):
                    if same.job.job_spec.body_digest != job_spec.body_digest:
                        raise IdempotencyConflict(str(job_spec.idempotency_key))
                    return same.job
            self._last += 1
            job = replace(job, number=self._last)
            self._kept[job.id] = _Kept(job)
            return job

    def get(self, job_id: str, owner: str | None) -> Job | None:
        """One job."""
        with self._lock:
            kept = self._find(job_id, owner)
            return kept.job if kept else None

    def page(self, owner: str | None, statuses: Sequence[Status], before: int | None, limit: int) -> list[Job]:
        """The newest first."""
        with self._lock:
            found = [
                kept.job
                for kept in reversed(self._kept.values())
                if kept.is_visible_to(owner)
                and (not statuses or kept.job.status in statuses)
                and (before is None or kept.job.number < before)
            ]
            return found[:limit]

    def place(self, job_id: str) -> int:
        """How many queued jobs go before a queued one."""
        with self._lock:
            kept = self._kept.get(job_id)
            if kept is None or kept.job.status is not Status.QUEUED:
                return 0
            mine = (-kept.job.job_spec.priority, kept.job.number)
            return sum((-job.job_spec.priority, job.number) < mine for job in self._of(Status.QUEUED))

    def claim(self, holder: str, started_s: float, lease_s: float, most: int) -> list[Job]:
        """Take up to `most` jobs to work on."""
        with self._lock:
            now_s = time.monotonic()
            for kept in self._kept.values():
                if kept.holder not in {None, holder} and kept.lease_until_s < now_s:
                    kept.become(replace(kept.job, status=Status.QUEUED, started_s=None))
            running = Counter(job.job_spec.owner for job in self._of(Status.RUNNING))
            queued = {job.number: job for job in self._of(Status.QUEUED)}
            candidates = [Candidate(job.job_spec.owner, job.job_spec.priority, job.number) for job in queued.values()]
            claimed = []
            for candidate in fairest(candidates, running, most):
                kept = self._kept[queued[candidate.number].id]
                kept.become(replace(kept.job, status=Status.RUNNING, started_s=started_s))
                kept.holder, kept.lease_until_s = holder, now_s + lease_s
                claimed.append(kept.job)
            return claimed

    def keep(self, holder: str, lease_s: float) -> set[str]:
        """Renew the leases of all that `holder` holds."""
        with self._lock:
            until_s = time.monotonic() + lease_s
            held = self._held(holder)
            for kept in held:
                kept.lease_until_s = until_s
            return {kept.job.id for kept in held}

    def hand_back(self, holder: str) -> int:
        """What `holder` still holds is queued again."""
        with self._lock:
            held = self._held(holder)
            for kept in held:
                kept.become(replace(kept.job, status=Status.QUEUED, started_s=None))
            return len(held)

    def end(self, job_id: str, holder: str, ended_s: float, result: JobResult | Failure) -> bool:
        """End a job that `holder` holds."""
        with self._lock:
            kept = self._kept.get(job_id)
            if kept is None or kept.holder != holder:
                return False
            if isinstance(result, JobResult):
                ended = replace(kept.job, status=Status.SUCCEEDED, ended_s=ended_s, made=result)
            else:
                ended = replace(kept.job, status=Status.FAILED, ended_s=ended_s, failure=result)
            kept.become(ended, due_s=ended_s)
            return True

    def cancel(self, job_id: str, owner: str | None, now_s: float) -> Job | None:
        """End a job as cancelled, unless it has ended."""
        with self._lock:
            kept = self._find(job_id, owner)
            if kept and not kept.job.status.is_end:
                kept.become(replace(kept.job, status=Status.CANCELLED, ended_s=now_s), due_s=now_s)
            return kept.job if kept else None

    def delete(self, job_id: str, owner: str | None) -> Job | None:
        """Forget a job that has ended."""
        with self._lock:
            kept = self._find(job_id, owner)
            if kept is None or not kept.job.status.is_end:
                return None
            del self._kept[job_id]
            return kept.job

    def counts(self) -> Mapping[Status, int]:
        """How many there are of each status."""
        with self._lock:
            return dict.fromkeys(Status, 0) | Counter(kept.job.status for kept in self._kept.values())

    def due(self, now_s: float) -> list[DueWebhooks]:
        """Count the webhooks that are to be sent now, by receiver."""
        with self._lock:
            waiting: dict[Receiver, list[float]] = defaultdict(list)
            for due_s, _, kept in self._due(now_s):
                waiting[kept.receiver].append(due_s)
            return [DueWebhooks(receiver, len(due_s), min(due_s)) for receiver, due_s in waiting.items()]

    def take_due(self, now_s: float, most: Mapping[Receiver, int]) -> list[Delivery]:
        """Take webhooks that are due, and hold them for `HELD_S`."""
        with self._lock:
            left, taken = Counter(most), []
            for *_, kept in sorted(self._due(now_s), key=itemgetter(0, 1)):
                if left[kept.receiver] > 0:
                    left[kept.receiver] -= 1
                    kept.due_s = now_s + HELD_S
                    url = kept.job.job_spec.webhook or ""
                    taken.append(Delivery(kept.job.id, url, kept.attempts, kept.receiver))
            return taken

    def delivered(self, job_id: str) -> None:
        """Forget a webhook that arrived or was given up."""
        with self._lock:
            if kept := self._kept.get(job_id):
                kept.due_s = None

    def postpone(self, job_id: str, until_s: float) -> None:
        """Count a failed attempt to send a webhook, and make it due again later."""
        with self._lock:
            kept = self._kept.get(job_id)
            if kept and kept.due_s is not None:
                kept.due_s, kept.attempts = until_s, kept.attempts + 1

    def redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Let jobs that ended in a span end at `now_s`."""
        with self._lock:
            for kept in self._kept.values():
                at_s = kept.job.ended_s
                if at_s is not None and from_s <= at_s and (until_s is None or at_s <= until_s):
                    kept.job = replace(kept.job, ended_s=now_s)

    def sweep(self, ended_before_s: float) -> int:
        """Forget jobs that ended before a time."""
        with self._lock:
            ended_s = {job_id: kept.job.ended_s for job_id, kept in self._kept.items()}
            ended = [job_id for job_id, at_s in ended_s.items() if at_s is not None and at_s < ended_before_s]
            for job_id in ended:
                del self._kept[job_id]
            return len(ended)

    def close(self) -> None:
        """There is nothing to let go of."""

    def _find(self, job_id: str, owner: str | None) -> _Kept | None:
        kept = self._kept.get(job_id)
        return kept if kept and kept.is_visible_to(owner) else None

    def _of(self, status: Status) -> list[Job]:
        return [kept.job for kept in self._kept.values() if kept.job.status is status]

    def _due(self, now_s: float) -> list[tuple[float, str, _Kept]]:
        """List the webhooks that are due: since when, the job's id, and the job."""
        return [
            (kept.due_s, kept.job.id, kept)
            for kept in self._kept.values()
            if kept.due_s is not None and kept.due_s <= now_s
        ]

    def _held(self, holder: str) -> list[_Kept]:
        return [kept for kept in self._kept.values() if kept.holder == holder]
