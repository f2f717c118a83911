"""Retention by age, if the clock is wrong or the server was off."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from structlog.testing import capture_logs

from sd35.storage.blobs.memory import MemoryBlobStore
from sd35.storage.clock import ClockRecord, ClockRules, judge
from sd35.storage.database import open_database
from sd35.storage.images import ImageStore
from sd35.storage.jobs import new_job
from sd35.storage.retention import Retention, Sweeper, SweepResult
from tests.support.job_specs import job_spec

NOW_S = 1_800_000_000.0
HOUR_S, DAY_S = 3600.0, 86_400.0
RETENTION_S = 30 * DAY_S
SWEEP_S = 300.0


class Server:
    """A server whose stores are swept every five minutes while it runs. Its clock may be wrong."""

    def __init__(self, retention_bytes: int | None = None, wrong_s: float = 0.0) -> None:
        self.stores = open_database("memory")
        self.images = ImageStore(MemoryBlobStore(), self.stores.ownership)
        self.retention = Retention(self.images, RETENTION_S, retention_bytes)
        self.wrong_s = wrong_s  # the clock is ahead by this
        self.real_s = NOW_S
        self.count = 0
        self.start()

    @property
    def now_s(self) -> float:
        """The time that the clock shows."""
        return self.real_s + self.wrong_s

    def start(self) -> SweepResult:
        """Restart the server. Returns the result of its first sweep."""
        self.sweeper = Sweeper(self.retention, self.stores, RETENTION_S)
        return self.sweeper.sweep(self.now_s)

    def run(self, seconds: float) -> int:
        """Run the server for a time. Returns the number of deleted images."""
        deleted = 0
        for _ in range(round(seconds / SWEEP_S)):
            self.real_s += SWEEP_S
            deleted += self.sweeper.sweep(self.now_s).images
        return deleted

    def add_image(self) -> str:
        """Add an image and an ended job. Returns the digest of the image."""
        digest = f"{self.count:064x}"
        self.count += 1
        self.stores.ownership.add(digest, "me", 10, self.now_s)
        self.images.blobs.put(f"{digest}.png", bytes(10))
        job = self.stores.jobs.add(new_job(job_spec(), self.now_s))
        self.stores.jobs.cancel(job.id, None, self.now_s)
        return digest

    def has(self, digest: str) -> bool:
        """Return whether an image is stored."""
        return self.images.blobs.get(f"{digest}.png") is not None

    def jobs(self) -> int:
        """Return the number of stored jobs."""
        return len(self.stores.jobs.page(None, [], None, 100))


@pytest.fixture
def server() -> Server:
    """A running server with one image."""
    server = Server()
    server.add_image()
    server.run(HOUR_S)
    return server


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("ahead_s", [31 * DAY_S, 365 * DAY_S])
def test_a_clock_that_is_ahead_deletes_nothing_for_a_day(server: Server, ahead_s: float, *, is_restarted: bool):
    """Neither at a start nor later. When the clock is corrected, retention continues as before."""
    server.wrong_s = ahead_s
    if is_restarted:
        assert server.start() == SweepResult(0, 0)
    assert server.run(23 * HOUR_S) == 0
    paused = [server.sweeper.is_paused]
    server.wrong_s = 0
    assert server.run(DAY_S) == 0
    assert [*paused, server.sweeper.is_paused] == [True, False]
    assert (server.has("0" * 64), server.jobs()) == (True, 1)


def test_a_server_that_was_off_for_months_resumes_after_a_day(server: Server):
    """Its clock is right, and nobody has to do anything."""
    server.real_s += 60 * DAY_S
    assert server.start() == SweepResult(0, 0)
    new = server.add_image()
    assert server.run(23 * HOUR_S) == 0
    assert server.run(2 * HOUR_S) == 1
    assert (server.has("0" * 64), server.has(new), server.jobs()) == (False, True, 1)


def test_a_server_that_is_switched_on_by_day_resumes_too(server: Server):
    """The day may consist of several runs. The time between them does not count."""
    server.real_s += 60 * DAY_S
    deleted = []
    for _ in range(4):
        deleted.append(server.start().images + server.run(8 * HOUR_S + SWEEP_S))
        server.real_s += 16 * HOUR_S
    assert deleted == [0, 0, 1, 0]


def test_a_clock_that_is_wrong_in_another_way_at_each_start_deletes_nothing(server: Server):
    """The differences are plausible, but no server ran between the readings."""
    for days in range(31, 36):
        server.wrong_s = days * DAY_S
        assert server.start() == SweepResult(0, 0)


def test_a_week_without_running_is_not_a_clock_jump(server: Server):
    """It is less than a quarter of `retention_days`, so old images are deleted at once."""
    server.run(29 * DAY_S)
    server.real_s += 7 * DAY_S
    assert server.start() == SweepResult(1, 1)


def test_an_image_dated_by_a_clock_that_was_ahead_expires(server: Server):
    """It is kept for `retention_days` after the clock was corrected, not for a year longer."""
    server.wrong_s = 365 * DAY_S
    server.run(HOUR_S)
    image = server.add_image()
    server.wrong_s = 0
    server.run(29 * DAY_S)
    assert server.has(image)
    server.run(2 * DAY_S)
    assert (server.has(image), server.jobs()) == (False, 0)


@pytest.mark.parametrize("ahead_s", [7 * DAY_S, 365 * DAY_S])
def test_a_first_reading_that_was_ahead_does_not_extend_retention(ahead_s: float):
    """Neither by little nor by much."""
    server = Server(wrong_s=ahead_s)
    image = server.add_image()
    server.wrong_s = 0
    server.run(29 * DAY_S)
    assert server.has(image)
    server.run(3 * DAY_S)
    assert (server.has(image), server.jobs()) == (False, 0)


def test_an_image_dated_by_a_clock_that_was_behind_is_not_old(server: Server):
    """An image dated 1970 is kept for `retention_days` after the clock was corrected."""
    server.wrong_s = -server.real_s
    server.start()
    image = server.add_image()
    server.run(HOUR_S)
    server.wrong_s = 0
    server.run(29 * DAY_S)
    assert server.has(image)
    server.run(2 * DAY_S)
    assert (server.has(image), server.jobs()) == (False, 0)


def test_the_size_limit_applies_whatever_the_clock_says():
    """Otherwise, the disk could fill up. Only the excess is deleted."""
    server = Server(retention_bytes=25)
    old, *others = (server.add_image() for _ in range(3))
    server.wrong_s = 365 * DAY_S
    assert server.start() == SweepResult(1, 0)
    assert [server.has(digest) for digest in (old, *others)] == [False, True, True]


def test_a_pause_is_logged_once_with_a_remedy(server: Server):
    """The log shows the last trusted time, the current time, and the time when retention resumes."""
    with capture_logs() as logs:
        server.wrong_s = 31 * DAY_S
        server.run(HOUR_S)
        server.wrong_s = 0
        server.run(HOUR_S)
    paused, resumed = (log for log in logs if "retention" in log["event"])
    assert paused["log_level"] == "warning"
    assert (paused["last_seen"], paused["clock"], paused["resumes"]) == (
        "2027-01-15T09:00:00+00:00",
        "2027-02-15T09:05:00+00:00",
        "2027-02-16T09:05:00+00:00",
    )
    assert "correct the clock if it is wrong" in paused["remedy"]
    assert "resumed" in resumed["event"]


def test_a_retention_of_hours_is_paused_for_hours():
    """A short retention period is at most doubled. Without one, the rules are a week and a day."""
    assert ClockRules.for_retention(4 * HOUR_S) == (HOUR_S, 4 * HOUR_S)
    assert ClockRules.for_retention(None) == (7 * DAY_S, DAY_S)


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.integers(0, 40)), max_size=12))
def test_no_jump_is_trusted_at_once(jumps: list[tuple[float, int]]):
    """A trusted reading is close to the last trusted one, or follows a day of plausible readings."""
    rules = ClockRules.for_retention(RETENTION_S)
    record, now_s, last_s = ClockRecord(NOW_S), NOW_S, NOW_S
    run_s = 0.0  # time in which readings have followed each other plausibly
    for jump_s, sweeps in jumps:
        for step_s in (jump_s, *[SWEEP_S] * sweeps):
            now_s += step_s
            if abs(step_s) > rules.plausible_s:
                run_s = 0.0
            elif 0 <= step_s <= HOUR_S:
                run_s += step_s
            since_s = record.suspect_since_s
            suspected_s = (record.suspect_last_s or 0) - (since_s or 0)
            reading = judge(record, now_s, rules)
            if reading.is_trusted:
                is_near = abs(now_s - last_s - suspected_s) <= rules.plausible_s
                assert is_near or run_s >= rules.confirmed_s
                last_s = now_s
            record = reading.record
