"""Jobs as rows, and back."""

from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Row

from sd35.images.formats import Format
from sd35.request import Request
from sd35.storage.jobs import Failure, Job, JobResult, JobSpec, Status

_REQUEST = TypeAdapter(Request)


def values_of(job: Job) -> dict[str, Any]:
    """The columns of a job that is queued; the store numbers it."""
    job_spec = job.job_spec
    return {
        "id": job.id,
        "owner": job_spec.owner,
        "status": job.status.value,
        "priority": job_spec.priority,
        "request": job_spec.request.canonical.decode(),
        "format": job_spec.format.value,
        "has_metadata": job_spec.has_metadata,
        "webhook": job_spec.webhook,
        "idempotency_key": job_spec.idempotency_key,
        "body_digest": job_spec.body_digest,
        "created_s": job.created_s,
    }


def values_of_result(result: JobResult | Failure) -> dict[str, Any]:
    """The columns of how a job ended."""
    if isinstance(result, JobResult):
        return {
            "status": Status.SUCCEEDED.value,
            "image_digest": result.digest,
            "was_cached": result.was_cached,
            "is_blurred": result.is_blurred,
        }
    return {"status": Status.FAILED.value, "failure_status": result.status, "failure_detail": result.detail}


def job_of(row: Row[Any]) -> Job:
    """The job in a row that has all columns."""
    job_spec = JobSpec(
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
        job_spec=job_spec,
        status=Status(row.status),
        created_s=row.created_s,
        started_s=row.started_s,
        ended_s=row.ended_s,
        made=None if row.image_digest is None else JobResult(row.image_digest, row.was_cached, row.is_blurred),
        failure=None if row.failure_status is None else Failure(row.failure_status, row.failure_detail),
    )
