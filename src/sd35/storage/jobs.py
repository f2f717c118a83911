"""What a job is, and what a store of jobs does. One contract suite runs over the implementations.

A job is a request for an image that outlives the connection it came by: it is accepted once, and ends once, with a
image, an error, or cancelled. Who works on it holds it for a while (a lease) and says again and again that it still
does; what nobody holds any more, since its process was killed, is claimed anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from sd35.images.formats import Format
from sd35.request import Request

HELD_S = 60.0  # a webhook that one process sends is not given to another for this long


class Status(StrEnum):
    """Where a job is. The last three are ends: a job never leaves them."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        """Whether nothing more comes."""
        return self not in {Status.QUEUED, Status.RUNNING}


@dataclass(frozen=True)
class JobSpec:
    """What is wanted of a job. `owner` is the key that asked, "" where there are no keys: only it sees the job.

    `idempotency_key` is the caller's own name for it, unique among the owner's jobs; `body_digest` tells whether what
    comes under the same name is the same again.
    """

    request: Request
    owner: str = ""
    priority: int = 0
    format: Format = Format.PNG
    has_metadata: bool = True
    webhook: str | None = None
    idempotency_key: str | None = None
    body_digest: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a job failed: the HTTP status that a synchronous call would have had, and the words."""

    status: int
    detail: str


@dataclass(frozen=True)
class JobResult:
    """What a job ended with: the image's identity, that of the request which made it, and whether it was there."""

    digest: str
    was_cached: bool
    is_blurred: bool = False


@dataclass(frozen=True)
class Job:
    """One job as it is now. Times are seconds since 1970. `number` grows with every job of the store."""

    id: str
    number: int
    job_spec: JobSpec
    status: Status
    created_s: float
    started_s: float | None = None
    ended_s: float | None = None
    made: JobResult | None = None
    failure: Failure | None = None


class Receiver(NamedTuple):
    """Who gets a webhook, as far as sharing places is concerned: the job's owner, and the host of the webhook's URL."""

    owner: str
    host: str


@dataclass(frozen=True)
class DueWebhooks:
    """How many webhooks of one receiver are due, and since when the oldest of them is."""

    receiver: Receiver
    count: int
    oldest_s: float


@dataclass(frozen=True)
class Delivery:
    """A webhook to send now: a POST to `url` that tells how the job ended. `attempts` were made before."""

    job_id: str
    url: str
    attempts: int
    receiver: Receiver


class JobStore(Protocol):
    """Keeps jobs. Safe for threads; blocks, so that the event loop calls it in a thread. Each call is one transaction.

    Where a method takes an `owner`, None is the administrator, who sees all; else another's job counts as not there.
    Raises StoreUnavailable where the database does not answer.
    """

    def add(self, job: Job) -> Job:
        """Keep a new job. Where its owner has one of the same idempotency key, that one comes back instead.

        `number` is the store's to give. Raises IdempotencyConflict where that one's `body_digest` is another.
        """

    def get(self, job_id: str, owner: str | None) -> Job | None:
        """One job."""

    def page(self, owner: str | None, statuses: Sequence[Status], before: int | None, limit: int) -> list[Job]:
        """The newest first; of the given statuses, or all where none is given; with a `number` below `before`."""

    def place(self, job_id: str) -> int:
        """How many queued jobs go before a queued one by priority and age; 0 for any other."""

    def claim(self, holder: str, started_s: float, lease_s: float, most: int) -> list[Job]:
        """Take up to `most` jobs to work on, which are then running: queued ones, and others' whose lease is over.

        A lease ends `lease_s` after the last `claim` or `keep`, by the store's own clock, and earlier where the store
        knows that the holder's process has ended. All holders use the same `lease_s`. `started_s` is what the jobs show
        as their start; leases do not depend on it.

        Whose lease is over at another's claim has lost the job, taken or not: it is queued again in its old place.

        Those of the owners who have the fewest running go first, then by priority, then by age, as if taken one by one,
        and come back in that order. Of two holders who ask at once, no job goes to both.
        """

    def keep(self, holder: str, lease_s: float) -> set[str]:
        """Renew the leases of all that `holder` holds; the ids of those that are still its to work on."""

    def hand_back(self, holder: str) -> int:
        """What `holder` still holds is queued again, in its old place; how many that were."""

    def end(self, job_id: str, holder: str, ended_s: float, result: JobResult | Failure) -> bool:
        """End a job, with its webhook due at once; False, and nothing changes, where `holder` does not hold it."""

    def cancel(self, job_id: str, owner: str | None, now_s: float) -> Job | None:
        """End a job as cancelled, with its webhook due at once, unless it has ended; the job as it is then, or None."""

    def delete(self, job_id: str, owner: str | None) -> Job | None:
        """Forget a job that has ended, prompt and all; the job as it was. One that runs has to be cancelled first."""

    def counts(self) -> Mapping[Status, int]:
        """How many there are of each status."""

    def due(self, now_s: float) -> list[DueWebhooks]:
        """Count the webhooks that are to be sent now, by receiver, in no particular order."""

    def take_due(self, now_s: float, most: Mapping[Receiver, int]) -> list[Delivery]:
        """Take up to `most[receiver]` webhooks that are due of each receiver, and hold them for `HELD_S`.

        The longest due go first. Of two processes that ask at once, no webhook goes to both.
        """

    def delivered(self, job_id: str) -> None:
        """Forget a webhook that arrived or was given up."""

    def postpone(self, job_id: str, until_s: float) -> None:
        """Count a failed attempt to send a webhook, and make it due again at `until_s`."""

    def redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Let jobs that ended in a span end at `now_s`. The span has no end where `until_s` is None."""

    def sweep(self, ended_before_s: float) -> int:
        """Forget jobs that ended before a time; how many that were."""

    def close(self) -> None:
        """Let go of connections."""
