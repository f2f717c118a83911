"""Jobs, and the interface of a job store. One contract test suite runs over all implementations.

A job is a request for an image that does not depend on the client's connection. It is accepted once and ends once: with
an image, with an error, or cancelled. The process that runs a job holds a lease on it and renews that lease regularly.
If the process is killed, the lease expires and another process claims the job.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from sd35.images.formats import Format
from sd35.request import Request

WEBHOOK_LEASE_S = 60.0  # while one process sends a webhook, no other process claims it for this long


class Status(StrEnum):
    """Status of a job. The last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        """Whether the status is final."""
        return self not in {Status.QUEUED, Status.RUNNING}


@dataclass(frozen=True)
class JobSpec:
    """The properties of a job that are fixed when a client creates it.

    Attributes:
        request: The image to generate.
        owner: ID of the API key that sent the job, "" if the service has no keys.
        priority: Among the jobs of one owner, jobs with a higher priority run first.
        format: File format of the image in responses.
        has_metadata: Whether the file in responses contains the parameters of the image.
        webhook: URL to notify when the job ends.
        idempotency_key: The client's name for the job, unique among the owner's jobs.
        body_digest: Digest of the request body. A second request with the same idempotency key must have the same
            digest.
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
    """Why a job failed: a message, and the HTTP status that a synchronous call would have returned."""

    status: int
    detail: str


@dataclass(frozen=True)
class JobResult:
    """The image of a job that succeeded.

    Attributes:
        digest: Digest of the request that generated the image.
        was_cached: Whether the image was not generated for this job: it was in the store, or shared with another call.
        is_blurred: Whether the content filter has blurred the image.
    """

    digest: str
    was_cached: bool
    is_blurred: bool = False


@dataclass(frozen=True)
class Job:
    """State of a job. Times are in seconds since 1970. A younger job of the same store has a higher `number`."""

    id: str
    number: int
    spec: JobSpec
    status: Status
    created_s: float
    started_s: float | None = None
    ended_s: float | None = None
    result: JobResult | None = None
    failure: Failure | None = None


class Receiver(NamedTuple):
    """The unit of fairness among webhooks: the owner of the job and the host of the webhook's URL."""

    owner: str
    host: str

    @classmethod
    def from_url(cls, owner: str, url: str) -> "Receiver":
        """Return the receiver of the webhooks that `owner` has sent to `url`.

        The host is in lower-case ASCII, without a final dot. It is "" if the URL is invalid. The HTTP client that sends
        the webhook parses the URL here too, because another parser might find another host.
        """
        import httpx2

        try:
            return cls(owner, httpx2.URL(url).raw_host.decode().rstrip("."))
        except (httpx2.InvalidURL, ValueError):
            return cls(owner, "")


@dataclass(frozen=True)
class DueWebhooks:
    """Number of due webhooks of a receiver. `oldest_s` is when the first of them became due, in seconds since 1970."""

    receiver: Receiver
    count: int
    oldest_s: float


@dataclass(frozen=True)
class Delivery:
    """A webhook to send now: a POST to `url` with the final state of a job.

    `attempts` is the number of earlier attempts, which failed.
    """

    job_id: str
    url: str
    attempts: int
    receiver: Receiver


class JobStore(Protocol):
    """Stores jobs, and the webhooks that are not delivered yet. Thread-safe.

    Methods block, so the event loop calls them on threads. They raise StoreUnavailable if the database does not answer.
    Each call is one transaction, except `sweep`.

    A method that takes an `owner` treats jobs of other owners as missing. `owner=None` is an administrator, who sees
    all jobs. A `holder` is the ID of a job runner in some process. A webhook is due if it is to be sent now.
    """

    def add(self, job: Job) -> Job:
        """Store a new job and return it with its `number`.

        If the owner already has a job with the same idempotency key, returns that job instead. Raises
        IdempotencyConflict if its `body_digest` differs.
        """

    def get(self, job_id: str, owner: str | None) -> Job | None:
        """Return a job, or None if it is missing."""

    def page(self, owner: str | None, statuses: Sequence[Status], before: int | None, limit: int) -> list[Job]:
        """Return up to `limit` jobs, newest first.

        Args:
            owner: Owner of the jobs; None for all owners.
            statuses: Statuses to include; empty for all.
            before: Return only jobs with a `number` below this one; None for no bound.
            limit: Maximum number of jobs.
        """

    def position(self, job_id: str) -> int:
        """Return the number of jobs ahead of a queued job. Returns 0 if the job is not queued.

        These are the queued jobs of all owners with a higher priority, or with the same priority and a lower number.
        """

    def claim(self, holder: str, started_s: float, lease_s: float, limit: int) -> list[Job]:
        """Claim up to `limit` queued jobs for `holder`: set their status to running, and return them in fair order.

        The order is as if jobs were claimed one at a time. Each time, the owner with the fewest running jobs goes
        first, then the job with the highest priority, then the oldest job. No job goes to two holders.

        First, if leases of other holders have expired, their jobs are queued again, in their old places. The holders
        lose these jobs, even if this call does not claim them. A lease expires `lease_s` after the job was claimed or
        the lease was last renewed, by the store's own clock. It expires earlier if the store knows that the holder's
        process has ended.

        Args:
            holder: ID of the job runner that claims.
            started_s: Start time to store in the jobs, in seconds since 1970. Leases do not depend on it.
            lease_s: Length of the lease in seconds. All holders use the same length.
            limit: Maximum number of jobs to claim.
        """

    def renew(self, holder: str, lease_s: float) -> set[str]:
        """Renew all leases of `holder`. Returns the IDs of the jobs that it still holds."""

    def release(self, holder: str) -> int:
        """Queue all jobs of `holder` again, in their old places, and end their leases. Returns their number."""

    def end(self, job_id: str, holder: str, ended_s: float, result: JobResult | Failure) -> bool:
        """End a job and make its webhook due. Returns False and changes nothing if `holder` does not hold the job."""

    def cancel(self, job_id: str, owner: str | None, now_s: float) -> Job | None:
        """Cancel a job and make its webhook due. A job that has ended stays as it is.

        Returns the job, or None if it is missing.
        """

    def delete(self, job_id: str, owner: str | None) -> Job | None:
        """Delete a job that has ended. Returns the deleted job, or None if it is missing or has not ended."""

    def counts(self) -> Mapping[Status, int]:
        """Return the number of jobs of each status."""

    def due_webhooks(self, now_s: float) -> list[DueWebhooks]:
        """Return the number of due webhooks of each receiver that has any. The receivers are in any order."""

    def claim_webhooks(self, now_s: float, limits: Mapping[Receiver, int]) -> list[Delivery]:
        """Claim up to `limits[receiver]` due webhooks of each receiver. Returns them, the longest due first.

        For `WEBHOOK_LEASE_S`, no other call claims them. Then they are due again.
        """

    def finish_webhook(self, job_id: str) -> None:
        """Delete a webhook, because it was delivered or its last attempt failed."""

    def postpone_webhook(self, job_id: str, until_s: float) -> None:
        """Count a failed attempt to send a webhook, and make the webhook due again at `until_s`."""

    def redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Set the end times of jobs between `from_s` and `until_s` to `now_s`, because the clock was wrong then.

        `until_s=None` means no upper bound. All times are in seconds since 1970.
        """

    def sweep(self, ended_before_s: float) -> int:
        """Delete jobs that ended before `ended_before_s`. Returns their number."""

    def close(self) -> None:
        """Close all connections."""


def new_job(spec: JobSpec, now_s: float) -> Job:
    """Return a new job with status "queued", to add to a store. The store assigns its `number`.

    The ID has 32 hexadecimal digits. The first 12 are the milliseconds since 1970: IDs sort by age, and new IDs are
    adjacent in an index. The other 20 are random, so that nobody can guess the IDs of other clients.
    """
    return Job(f"{int(now_s * 1000):012x}{secrets.token_hex(10)}", 0, spec, Status.QUEUED, now_s)
