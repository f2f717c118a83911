"""SQLite's job store and the one in memory give the same results for any sequence of calls."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from sd35.errors import IdempotencyConflict
from sd35.storage.database import open_database
from sd35.storage.jobs import Failure, Job, JobResult, JobSpec, Receiver, Status, new_job
from sd35.storage.memory.jobs import MemoryJobStore
from tests.support.job_specs import REQUEST
from tests.support.leases import pass_time

OWNERS, HOLDERS = st.sampled_from(["", "me", "you"]), st.sampled_from(["one", "two"])
HOSTS = ["a.example", "b.example"]
RECEIVERS = st.builds(Receiver, OWNERS, st.sampled_from(HOSTS))
VIEWERS = st.one_of(st.none(), OWNERS)
JOB_SPECS = st.builds(
    JobSpec,
    st.just(REQUEST),
    OWNERS,
    st.integers(-1, 1),
    webhook=st.sampled_from([None, *(f"https://{host}/hook" for host in HOSTS)]),
    idempotency_key=st.sampled_from([None, None, "k"]),
    body_digest=st.sampled_from(["1", "2"]),
)
LEASE_S = 1000  # much longer than the test takes by the stores' own clocks
RESULTS = st.sampled_from([JobResult("d", was_cached=True), Failure(500, "no")])


def unnumbered(job: Job | None) -> Job | None:
    """Return a job without its number. Numbers differ, because a refused job may use one up in SQL."""
    return job and replace(job, number=0)


class SideBySide(RuleBasedStateMachine):
    """Two stores that get the same calls."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.stores = open_database(str(self.folder / "jobs.db"))
        self.sql, self.memory = self.stores.jobs, MemoryJobStore()
        self.now_s = 0.0

    def teardown(self) -> None:
        """Delete the database."""
        self.stores.close()
        shutil.rmtree(self.folder)

    @rule(target=jobs, job_spec=JOB_SPECS)
    def add(self, job_spec: JobSpec):
        """Both stores add the job, return an existing one, or refuse it."""
        job = new_job(job_spec, self.now_s)
        added: list[Job | str | None] = []
        for store in (self.sql, self.memory):
            try:
                added.append(unnumbered(store.add(job)))
            except IdempotencyConflict as error:
                added.append(str(error))
        assert added[0] == added[1]
        return added[0].id if isinstance(added[0], Job) else multiple()

    @rule(holder=HOLDERS, limit=st.integers(0, 3), passed_s=st.integers(0, 9))
    def claim(self, holder: str, limit: int, passed_s: int):
        """Both stores give the same jobs in the same order."""
        self.now_s += passed_s
        for store in (self.sql, self.memory):
            pass_time(store, 300 * passed_s)
        claims = [store.claim(holder, self.now_s, LEASE_S, limit) for store in (self.sql, self.memory)]
        assert [unnumbered(job) for job in claims[0]] == [unnumbered(job) for job in claims[1]]

    @rule(holder=HOLDERS)
    def renew(self, holder: str):
        """Both stores renew the leases of the same jobs."""
        assert self.sql.renew(holder, LEASE_S) == self.memory.renew(holder, LEASE_S)

    @rule(holder=HOLDERS)
    def release(self, holder: str):
        """Both stores release the same number of jobs."""
        assert self.sql.release(holder) == self.memory.release(holder)

    @rule(job_id=jobs, holder=HOLDERS, result=RESULTS)
    def end(self, job_id: str, holder: str, result: JobResult | Failure):
        """Both stores end the job, or neither does."""
        ends = [store.end(job_id, holder, self.now_s, result) for store in (self.sql, self.memory)]
        assert ends[0] == ends[1]

    @rule(job_id=jobs, owner=VIEWERS)
    def cancel(self, job_id: str, owner: str | None):
        """Both stores return the same job."""
        cancelled = [store.cancel(job_id, owner, self.now_s) for store in (self.sql, self.memory)]
        assert unnumbered(cancelled[0]) == unnumbered(cancelled[1])

    @rule(job_id=jobs, owner=VIEWERS)
    def delete(self, job_id: str, owner: str | None):
        """Both stores delete the same job."""
        assert unnumbered(self.sql.delete(job_id, owner)) == unnumbered(self.memory.delete(job_id, owner))

    @rule(limits=st.dictionaries(RECEIVERS, st.integers(0, 3)), passed_s=st.integers(0, 90))
    def claim_webhooks(self, limits: dict[Receiver, int], passed_s: int):
        """Both stores have the same due webhooks, and give the same ones."""
        self.now_s += passed_s
        due = [{one.receiver: one for one in store.due_webhooks(self.now_s)} for store in (self.sql, self.memory)]
        assert due[0] == due[1]
        assert self.sql.claim_webhooks(self.now_s, limits) == self.memory.claim_webhooks(self.now_s, limits)

    @rule(job_id=jobs, wait_s=st.integers(0, 90))
    def postpone(self, job_id: str, wait_s: int):
        """Postpone a webhook in both stores."""
        for store in (self.sql, self.memory):
            store.postpone_webhook(job_id, self.now_s + wait_s)

    @rule(job_id=jobs)
    def finish(self, job_id: str):
        """Finish a webhook in both stores."""
        for store in (self.sql, self.memory):
            store.finish_webhook(job_id)

    @rule(ago_s=st.integers(0, 30))
    def sweep(self, ago_s: int):
        """Both stores delete the same number of jobs."""
        assert self.sql.sweep(self.now_s - ago_s) == self.memory.sweep(self.now_s - ago_s)

    @rule(owner=VIEWERS, statuses=st.lists(st.sampled_from(Status), max_size=2), limit=st.integers(1, 4))
    def page(self, owner: str | None, statuses: list[Status], limit: int):
        """Both stores give the same page."""
        pages = [store.page(owner, statuses, None, limit) for store in (self.sql, self.memory)]
        assert [unnumbered(job) for job in pages[0]] == [unnumbered(job) for job in pages[1]]

    @rule(job_id=jobs)
    def position(self, job_id: str):
        """Both stores give the same position."""
        assert self.sql.position(job_id) == self.memory.position(job_id)

    @invariant()
    def counts(self):
        """Both stores have the same number of jobs of each status."""
        assert self.sql.counts() == self.memory.counts()


def test_sqlite_and_memory_give_the_same_results():
    run_state_machine_as_test(SideBySide, settings=settings(max_examples=15, stateful_step_count=30))
