"""All job stores choose the same webhooks to send next."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sd35.jobs.webhooks.concurrency import InFlight
from sd35.storage.database import MEMORY, open_database
from sd35.storage.jobs import Delivery, JobStore, new_job
from tests.storage.conftest import NewDatabase
from tests.support.job_specs import job_spec


class Webhook(NamedTuple):
    """A webhook that becomes due at a time."""

    owner: str
    host: str
    due_s: int


class Step(NamedTuple):
    """Time passes, due webhooks are started, and then webhooks in flight end with the outcomes, oldest first."""

    passed_s: int
    outcomes: list[str]


WEBHOOKS = st.lists(
    st.builds(
        Webhook, st.sampled_from("abc"), st.sampled_from(["x.example", "y.example", "z.example"]), st.integers(0, 9)
    ),
    max_size=40,
)
OUTCOMES = st.lists(st.sampled_from(["delivered", "slow", "failed", "unanswered"]), max_size=20)
STEPS = st.lists(st.builds(Step, st.integers(0, 40), OUTCOMES), max_size=5)


class Sending:
    """Calls a store as a webhook sender does, but sends nothing."""

    def __init__(self, store: JobStore) -> None:
        self.store, self.in_flight = store, InFlight()
        self.sent: list[Delivery] = []

    def start(self, now_s: float) -> list[Delivery]:
        """Start the due webhooks that get a slot."""
        claimed = self.store.claim_webhooks(now_s, self.in_flight.choose(self.store.due_webhooks(now_s)))
        for delivery in claimed:
            self.in_flight.start(delivery.receiver)
        self.sent += claimed
        return claimed

    def end(self, outcomes: Sequence[str], now_s: float) -> None:
        """End the oldest webhooks in flight with the outcomes. The others stay in flight."""
        for delivery, outcome in zip(self.sent, outcomes, strict=False):
            if outcome == "failed":
                self.store.postpone_webhook(delivery.job_id, now_s + 5)
            elif outcome != "unanswered":  # otherwise, it is due again when its lease expires
                self.store.finish_webhook(delivery.job_id)
            self.in_flight.note_speed(delivery.receiver.host, is_slow=outcome == "slow")
            self.in_flight.end(delivery.receiver)
        del self.sent[: len(outcomes)]


@pytest.fixture
def kinds(tmp_path: Path, new_postgres: NewDatabase) -> Sequence[JobStore]:
    """A store of each kind."""
    return [open_database(url).jobs for url in (MEMORY, str(tmp_path / "jobs.db"), new_postgres())]


def test_all_stores_give_the_same_webhooks(kinds: Sequence[JobStore]):
    """In the same order, whichever webhooks are due, in flight, slow, failed or expired."""

    @settings(max_examples=40)
    @given(WEBHOOKS, STEPS)
    def check(webhooks: list[Webhook], steps: list[Step]) -> None:
        senders, now_s = [Sending(store) for store in kinds], 0
        for owner, host, due_s in webhooks:
            job = new_job(job_spec(owner, webhook=f"https://{host}/"), 0.0)
            for store in kinds:
                store.add(job)
                store.cancel(job.id, None, due_s)
        for step in steps:
            now_s += step.passed_s
            memory, *others = [sender.start(now_s) for sender in senders]
            assert others == [memory, memory]
            for sender in senders:
                sender.end(step.outcomes, now_s)
        for store in kinds:
            store.sweep(1e9)

    check()
    for store in kinds:
        store.close()
