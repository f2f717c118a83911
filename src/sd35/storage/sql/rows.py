"""Jobs as rows, and back."""

from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Row

from sd35.images.formats import Format
from sd35.request import Request
from sd35.storage.jobs import Failure, Job, Made, Order, Status

_REQUEST = TypeAdapter(Request)


def values_of(job: Job) -> dict[str, Any]:
    """The columns of a job that is queued; the store numbers it."""
    order = job.order
    return {
        "id": job.id,
        "owner": order.owner,
        "status": job.status.value,
        "priority": order.priority,
        "request": order.request.canonical.decode(),
        "format": order.format.value,
        "has_metadata": order.has_metadata,
        "webhook": order.webhook,
        "idempotency_key": order.idempotency_key,
        "body_digest": order.body_digest,
        "created_s": job.created_s,
    }


def values_of_result(result: Made | Failure) -> dict[str, Any]:
    """The columns of how a job ended."""
    if isinstance(result, Made):
        return {
            "status": Status.SUCCEEDED.value,
            "made_digest": result.digest,
            "was_cached": result.was_cached,
            "is_blurred": result.is_blurred,
        }
    return {"status": Status.FAILED.value, "failure_status": result.status, "failure_detail": result.detail}


def job_of(row: Row[Any]) -> Job:
    """The job in a row that has all columns."""
    order = Order(
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
        order=order,
        status=Status(row.status),
        created_s=row.created_s,
        started_s=row.started_s,
        ended_s=row.ended_s,
        made=None if row.made_digest is None else Made(row.made_digest, row.was_cached, row.is_blurred),
        failure=None if row.failure_status is None else Failure(row.failure_status, row.failure_detail),
    )
