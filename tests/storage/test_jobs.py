"""JobStore: one contract for all stores."""

import time
from dataclasses import replace
from functools import partial

import pytest

from sd35.errors import IdempotencyConflict
from sd35.images.formats import Format
from sd35.request import Request
from sd35.storage.database import Database
from sd35.storage.jobs import (
    WEBHOOK_LEASE_S,
    Delivery,
    DueWebhooks,
    Failure,
    Job,
    JobResult,
    JobSpec,
    JobStore,
    Receiver,
    Status,
    new_job,
)
from tests.support.job_specs import REQUEST, at_once, job_spec
from tests.support.leases import pass_time

LEASE_S = 10.0
RESULT = JobResult("d" * 64, was_cached=False)
HOOK = "https://example.com/hook"
EXAMPLE = Receiver("me", "example.com")


@pytest.fixture
def store(stores: Database) -> JobStore:
    """The job store of each kind of database."""
    return stores.jobs


def add(
    store: JobStore, owner: str = "me", now_s: float = 0.0, *, priority: int = 0, webhook: str | None = None
) -> Job:
    """Add a job and return it."""
    return store.add(new_job(job_spec(owner, priority=priority, webhook=webhook), now_s))


def claim(store: JobStore, limit: int = 1, started_s: float = 0.0, holder: str = "h") -> list[str]:
    """Claim jobs and return their IDs."""
    return [job.id for job in store.claim(holder, started_s, LEASE_S, limit)]


def claim_due(store: JobStore, now_s: float, limit: int = 9) -> list[Delivery]:
    """Claim webhooks that are due at `HOOK`."""
    return store.claim_webhooks(now_s, {EXAMPLE: limit})


def test_a_job_is_returned_as_it_was_stored(store: JobStore):
    """Every field is preserved, even text that is difficult for databases. `number` increases."""
    request = Request("猫 \x00 ' \\ 🐱", "\n", 64, 64, 4, 7.0, 2**32 - 1, "m", "r", "p", 2.5)
    full = JobSpec(
        request, "you", -9, Format.AVIF, has_metadata=False, webhook=HOOK, idempotency_key="k", body_digest="d"
    )
    jobs = [new_job(full, 1.25), new_job(job_spec(), 2.5)]
    added = [store.add(job) for job in jobs]
    assert [replace(job, number=0) for job in added] == jobs
    assert added[0].number < added[1].number
    assert [store.get(job.id, None) for job in jobs] == added
    found = store.get(jobs[0].id, "you")
    assert found is not None
    assert found.spec.request.digest == request.digest
    assert isinstance(found.spec.request.guidance_scale, float)


def test_a_job_of_another_owner_is_missing(store: JobStore):
    """An administrator can read, cancel and delete it."""
    job = add(store, "you")
    assert store.get(job.id, "me") is None
    assert store.page("me", [], None, 9) == []
    assert store.cancel(job.id, "me", 1.0) is None
    assert store.cancel(job.id, None, 1.0) is not None
    assert store.delete(job.id, "me") is None
    assert store.get(job.id, "you") == store.delete(job.id, None)
    assert store.get(job.id, "you") is None


def test_the_same_idempotency_key_returns_the_same_job(store: JobStore):
    """Even after the job has ended. Keys of different owners are independent."""
    first = store.add(new_job(job_spec(idempotency_key="k", body_digest="1"), 0.0))
    claim(store)
    store.end(first.id, "h", 2.0, RESULT)
    second = store.add(new_job(job_spec(idempotency_key="k", body_digest="1"), 3.0))
    assert second == store.get(first.id, None)
    assert second.status is Status.SUCCEEDED
    other = store.add(new_job(job_spec("you", idempotency_key="k", body_digest="2"), 3.0))
    assert other.id != first.id


def test_an_idempotency_key_with_another_body_is_refused(store: JobStore):
    """The error names the key."""
    store.add(new_job(job_spec(idempotency_key="k", body_digest="1"), 0.0))
    with pytest.raises(IdempotencyConflict, match="'k'"):
        store.add(new_job(job_spec(idempotency_key="k", body_digest="2"), 0.0))
    assert store.counts()[Status.QUEUED] == 1


def test_an_idempotency_key_of_a_deleted_job_can_be_used_again(store: JobStore):
    first = store.add(new_job(job_spec(idempotency_key="k"), 0.0))
    store.cancel(first.id, None, 1.0)
    store.delete(first.id, None)
    assert store.add(new_job(job_spec(idempotency_key="k"), 2.0)).id != first.id


def test_simultaneous_adds_with_one_key_store_one_job(store: JobStore):
    jobs = [new_job(job_spec(idempotency_key="k", body_digest="1"), 0.0) for _ in range(12)]
    added = at_once([partial(store.add, job) for job in jobs])
    assert len({job.id for job in added}) == 1
    assert store.counts()[Status.QUEUED] == 1


def test_pages_are_newest_first_and_continue(store: JobStore):
    """Pages can be filtered by owner and status. Consecutive pages have no duplicates and no gaps."""
    jobs = [add(store, owner) for owner in ("me", "you", "me", "me", "you")]
    claim(store, 2)
    newest = [job.id for job in reversed(jobs)]
    first = store.page(None, [], None, 2)
    rest = store.page(None, [], first[-1].number, 9)
    assert [job.id for job in first + rest] == newest
    mine = [job.id for job in store.page("me", [], None, 9)]
    assert mine == [jobs[3].id, jobs[2].id, jobs[0].id]
    running = store.page(None, [Status.RUNNING], None, 9)
    assert [job.id for job in running] == [jobs[1].id, jobs[0].id]
    assert len(store.page("me", [Status.RUNNING, Status.QUEUED], None, 9)) == 3
    assert store.page("me", [Status.FAILED], None, 9) == []


def test_position_counts_the_jobs_ahead(store: JobStore):
    """Jobs are ordered by priority, then by age. A running or unknown job has position 0."""
    low, first, second, high = (add(store, priority=priority) for priority in (-1, 0, 0, 5))
    assert [store.position(job.id) for job in (high, first, second, low)] == [0, 1, 2, 3]
    assert claim(store) == [high.id]
    assert [store.position(job.id) for job in (high, first, second, low)] == [0, 0, 1, 2]
    assert store.position("nothing") == 0


def test_a_claim_takes_jobs_by_priority_then_age(store: JobStore):
    """The claimed jobs are running afterwards."""
    old, new, urgent = add(store), add(store), add(store, priority=1)
    assert claim(store, 2, 3.0) == [urgent.id, old.id]
    running = store.get(old.id, None)
    assert running is not None
    assert (running.status, running.started_s) == (Status.RUNNING, 3.0)
    assert claim(store, 2) == [new.id]
    assert claim(store, 2) == []


def test_a_claim_is_fair_between_owners(store: JobStore):
    """An owner of many urgent jobs takes turns with an owner of few, within a claim and across claims."""
    many = [add(store, "many", priority=9).id for _ in range(4)]
    few = [add(store, "few").id for _ in range(2)]
    assert claim(store, 3) == [many[0], few[0], many[1]]
    late = add(store, "late", priority=-9).id
    assert claim(store, 1) == [late]  # its owner has no running job
    assert set(claim(store, 2)) == {few[1], many[2]}


def test_many_owners_share_a_small_claim_by_priority(store: JobStore):
    """If more owners wait than the claim allows, the most urgent of their first jobs are claimed."""
    ids = [add(store, f"owner {index}", priority=index % 3).id for index in range(9)]
    assert claim(store, 3) == [ids[2], ids[5], ids[8]]


def test_a_job_with_an_expired_lease_is_claimed_again(store: JobStore):
    """It keeps its old place. Its holder can renew the expired lease until another holder claims."""
    job, other = add(store), add(store)
    assert claim(store, 1, holder="dead") == [job.id]
    pass_time(store, LEASE_S + 1)
    assert store.renew("dead", LEASE_S) == {job.id}  # late, but nobody has claimed in the meantime
    pass_time(store, LEASE_S / 2)
    assert claim(store, 0, holder="alive") == []
    assert store.renew("dead", LEASE_S) == {job.id}
    pass_time(store, LEASE_S + 1)
    assert claim(store, 1, holder="alive") == [job.id]
    assert store.renew("dead", LEASE_S) == set()
    assert not store.end(job.id, "dead", 40.0, RESULT)
    assert store.end(job.id, "alive", 40.0, RESULT)
    assert claim(store, 9, 40.0) == [other.id]


def test_a_holder_does_not_claim_its_own_jobs(store: JobStore):
    """A holder that renews its leases late still runs its jobs."""
    job = add(store)
    claim(store, 1, holder="late")
    pass_time(store, 1e6)
    assert claim(store, 9, holder="late") == []
    assert store.renew("late", LEASE_S) == {job.id}


def test_renewing_extends_a_lease(store: JobStore):
    """Leases of cancelled jobs are not renewed."""
    running, cancelled = add(store), add(store)
    claim(store, 2)
    store.cancel(cancelled.id, None, 1.0)
    for _ in range(3):
        pass_time(store, 0.9 * LEASE_S)
        assert store.renew("h", LEASE_S) == {running.id}
    pass_time(store, 0.9 * LEASE_S)
    assert claim(store, 9, holder="other") == []


@pytest.mark.parametrize("ahead_s", [-3600.0, -20.0, 20.0, 3600.0])
def test_leases_do_not_depend_on_a_holders_wall_clock(store: JobStore, monkeypatch: pytest.MonkeyPatch, ahead_s: float):
    """A holder with another time does not claim a job early, and does not wait longer for it."""
    job, original = add(store), time.time
    claim(store, 1, time.time(), "other")
    monkeypatch.setattr(time, "time", lambda: original() + ahead_s)
    assert claim(store, 1, time.time(), "this") == []
    pass_time(store, LEASE_S + 1)
    assert claim(store, 1, time.time(), "this") == [job.id]


def test_simultaneous_claims_never_share_a_job(store: JobStore):
    """No job is left over."""
    ids = {add(store, f"owner {index % 3}").id for index in range(24)}
    claims = at_once([partial(claim, store, 4, 0.0, f"holder {index}") for index in range(8)])
    assert sorted(job_id for claimed in claims for job_id in claimed) == sorted(ids)


def test_released_jobs_are_queued_in_their_old_place(store: JobStore):
    """Jobs of other holders are not affected."""
    first, second, third = add(store), add(store), add(store)
    claim(store, 1, holder="other")
    claim(store, 1, holder="closing")
    assert store.release("closing") == 1
    assert store.get(second.id, None) == second
    assert store.position(third.id) == 1
    assert not store.end(second.id, "closing", 1.0, RESULT)
    assert store.end(first.id, "other", 1.0, RESULT)


@pytest.mark.parametrize(
    "result", [RESULT, JobResult("e" * 64, was_cached=True, is_blurred=True), Failure(500, "no \x1b")]
)
def test_a_job_ends_once(store: JobStore, result: JobResult | Failure):
    """Only its holder can end it, and nothing changes it afterwards."""
    job = add(store)
    assert not store.end(job.id, "h", 5.0, result)
    claim(store, started_s=1.0)
    assert not store.end(job.id, "other", 5.0, result)
    assert store.end(job.id, "h", 5.0, result)
    ended = store.get(job.id, None)
    is_success = isinstance(result, JobResult)
    assert ended == replace(
        job,
        status=Status.SUCCEEDED if is_success else Status.FAILED,
        started_s=1.0,
        ended_s=5.0,
        result=result if isinstance(result, JobResult) else None,
        failure=None if isinstance(result, JobResult) else result,
    )
    assert not store.end(job.id, "h", 6.0, RESULT)
    assert store.cancel(job.id, None, 7.0) == ended
    assert claim(store, 9, 1e9) == []


def test_queued_and_running_jobs_can_be_cancelled(store: JobStore):
    """Then their holder can no longer end them, and nobody claims them."""
    running, queued = add(store), add(store)
    claim(store)
    for job in (running, queued):
        cancelled = store.cancel(job.id, "me", 4.0)
        assert cancelled is not None
        assert (cancelled.status, cancelled.ended_s) == (Status.CANCELLED, 4.0)
    assert not store.end(running.id, "h", 5.0, RESULT)
    assert claim(store, 9, 1e9) == []
    assert store.cancel("nothing", None, 4.0) is None


def test_only_ended_jobs_are_deleted(store: JobStore):
    """A queued or running job must be cancelled first."""
    job = add(store)
    assert store.delete(job.id, "me") is None
    claim(store)
    assert store.delete(job.id, "me") is None
    ended = store.cancel(job.id, "me", 1.0)
    assert store.delete(job.id, "me") == ended
    assert store.delete(job.id, "me") is None


def test_counts_cover_every_status(store: JobStore):
    """Even a status that no job has."""
    assert store.counts() == dict.fromkeys(Status, 0)
    for _ in range(4):
        add(store)
    first, second = claim(store, 2)
    store.end(first, "h", 1.0, RESULT)
    store.end(second, "h", 1.0, Failure(500, "no"))
    claim(store)
    assert store.counts() == dict.fromkeys(Status, 1) | {Status.CANCELLED: 0}


def test_a_webhook_is_due_when_its_job_ends(store: JobStore):
    """Even if the job is cancelled. A job without a webhook has none due."""
    succeeded, cancelled = add(store, webhook=HOOK), add(store, webhook=HOOK + "2")
    add(store)
    claim(store, 1)
    assert claim_due(store, 1e9) == []
    store.end(succeeded.id, "h", 5.0, RESULT)
    store.cancel(cancelled.id, None, 6.0)
    assert claim_due(store, 4.0) == []
    assert claim_due(store, 5.0) == [Delivery(succeeded.id, HOOK, 0, EXAMPLE)]
    assert claim_due(store, 6.0) == [Delivery(cancelled.id, HOOK + "2", 0, EXAMPLE)]


def test_due_webhooks_are_counted_by_receiver(store: JobStore):
    """Each count has the time since which the oldest webhook is due."""
    others = [("me", HOOK), ("me", "http://EXAMPLE.com.:8080/"), ("me", "https://other.example"), ("you", HOOK)]
    for now_s, (owner, url) in enumerate(others):
        store.cancel(add(store, owner, webhook=url).id, None, now_s)
    store.cancel(add(store, webhook=HOOK).id, None, 50.0)
    assert {one.receiver: one for one in store.due_webhooks(49.0)} == {
        EXAMPLE: DueWebhooks(EXAMPLE, 2, 0.0),
        Receiver("me", "other.example"): DueWebhooks(Receiver("me", "other.example"), 1, 2.0),
        Receiver("you", "example.com"): DueWebhooks(Receiver("you", "example.com"), 1, 3.0),
    }


def test_only_webhooks_of_the_given_receivers_are_claimed(store: JobStore):
    """At most the given number per receiver, and those due longest first."""
    old, new, other = (add(store, owner, webhook=HOOK) for owner in ("me", "me", "you"))
    for now_s, job in enumerate((other, old, new)):
        store.cancel(job.id, None, now_s)
    limits = {EXAMPLE: 1, Receiver("you", "elsewhere.example"): 1, Receiver("nobody", "example.com"): 1}
    assert store.claim_webhooks(9.0, limits) == [Delivery(old.id, HOOK, 0, EXAMPLE)]
    both = store.claim_webhooks(9.0, {EXAMPLE: 9, Receiver("you", "example.com"): 9})
    assert [delivery.job_id for delivery in both] == [other.id, new.id]


def test_a_claimed_webhook_is_not_due_during_its_lease(store: JobStore):
    """Afterwards it is due again, unless it was delivered."""
    job = add(store, webhook=HOOK)
    store.cancel(job.id, None, 0.0)
    assert len(claim_due(store, 0.0)) == 1
    assert store.due_webhooks(WEBHOOK_LEASE_S - 1) == []
    assert claim_due(store, WEBHOOK_LEASE_S - 1) == []
    assert len(claim_due(store, WEBHOOK_LEASE_S)) == 1
    store.finish_webhook(job.id)
    assert store.due_webhooks(1e9) == []


def test_a_postponed_webhook_is_due_later(store: JobStore):
    """Its number of attempts increases."""
    early, late = (add(store, webhook=HOOK) for _ in range(2))
    for job in (early, late):
        store.cancel(job.id, None, 0.0)
    claim_due(store, 0.0)
    store.postpone_webhook(late.id, 200.0)
    store.postpone_webhook(early.id, 100.0)
    assert claim_due(store, 99.0) == []
    assert claim_due(store, 300.0, 1) == [Delivery(early.id, HOOK, 1, EXAMPLE)]
    assert claim_due(store, 300.0, 1) == [Delivery(late.id, HOOK, 1, EXAMPLE)]


def test_simultaneous_claims_never_share_a_webhook(store: JobStore):
    for _ in range(6):
        store.cancel(add(store, webhook=HOOK).id, None, 0.0)
    due = at_once([partial(claim_due, store, 0.0, 2) for _ in range(6)])
    ids = [delivery.job_id for deliveries in due for delivery in deliveries]
    assert len(ids) == len(set(ids))
    assert len(ids) + len(claim_due(store, 0.0)) == 6


def test_a_sweep_deletes_jobs_that_ended_long_ago(store: JobStore):
    """Their pending webhooks are deleted, too. Newer and unfinished jobs stay."""
    old, new, queued = add(store, webhook=HOOK), add(store, webhook=HOOK), add(store)
    store.cancel(old.id, None, 10.0)
    store.cancel(new.id, None, 20.0)
    assert store.sweep(20.0) == 1
    assert [job.id for job in store.page(None, [], None, 9)] == [queued.id, new.id]
    assert [delivery.job_id for delivery in claim_due(store, 1e9)] == [new.id]


def test_jobs_that_ended_in_a_span_are_redated(store: JobStore):
    """The span includes both bounds. Without an upper bound, it has no end. Unfinished jobs do not change."""
    queued, *ended = (add(store) for _ in range(5))
    for job, ended_s in zip(ended, (1.0, 2.0, 3.0, 9e9), strict=True):
        store.cancel(job.id, None, ended_s)
    store.redate(2.0, 3.0, 50.0)
    store.redate(60.0, None, 55.0)
    found = [store.get(job.id, None) for job in ended]
    assert [job.ended_s for job in found if job] == [1.0, 50.0, 50.0, 55.0]
    assert store.get(queued.id, None) == queued


def test_ids_sort_by_age_and_are_unique():
    """The order of IDs of the same millisecond is random."""
    jobs = [new_job(JobSpec(REQUEST), now_s) for now_s in (1.0, 1.25, 1e9, 1.8e9) for _ in range(50)]
    assert len({job.id for job in jobs}) == len(jobs)
    assert [job.created_s for job in sorted(jobs, key=lambda job: job.id)] == [job.created_s for job in jobs]
    assert {len(job.id) for job in jobs} == {32}
