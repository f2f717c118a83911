"""Convert jobs to rows of the table `jobs`, and rows to jobs."""

from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Row

from sd35.images.formats import Format
from sd35.request import Request
from sd35.storage.jobs import Failure, Job, JobResult, JobSpec, Status

_REQUEST = TypeAdapter(Request)


def job_values(job: Job) -> dict[str, Any]:
    """Return the values of a queued job's row, by column. `number` is missing, because the database assigns it."""
    spec = job.spec
    return {
        "id": job.id,
        "owner": spec.owner,
        "status": job.status.value,
        "priority": spec.priority,
        "request": spec.request.canonical.decode(),
        "format": spec.format.value,
        "has_metadata": spec.has_metadata,
        "webhook": spec.webhook,
        "idempotency_key": spec.idempotency_key,
        "body_digest": spec.body_digest,
        "created_s": job.created_s,
    }


def result_values(result: JobResult | Failure) -> dict[str, Any]:
    """Return the values that store a job's result in its row, by column."""
    if isinstance(result, JobResult):
        return {
            "status": Status.SUCCEEDED.value,
            "image_digest": result.digest,
            "was_cached": result.was_cached,
            "is_blurred": result.is_blurred,
        }
    return {"status": Status.FAILED.value, "failure_status": result.status, "failure_detail": result.detail}


def job_from_row(row: Row[Any]) -> Job:
    """Return the job in a row, which must have all columns of the table."""
    spec = JobSpec(
        request=_REQUEST.validate_json(row.request),
        owner=row.owner,
        priority=row.priority,
        format=Format(row.format),
        has_metadata=row.has_metadata,
        webhook=row.webhook,
        idempotency_key=row.idempotency_key,
        body_digest=row.body_digest,
    )
    return Job(
        id=row.id,
        number=row.number,
        spec=spec,
        status=Status(row.status),
        created_s=row.created_s,
        started_s=row.started_s,
        ended_s=row.ended_s,
        result=None if row.image_digest is None else JobResult(row.image_digest, row.was_cached, row.is_blurred),
        failure=None if row.failure_status is None else Failure(row.failure_status, row.failure_detail),
    )
