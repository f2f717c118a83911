"""Nothing is removed for its age by a clock that cannot be believed, and nothing stays for ever because of one."""

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
KEEP_S = 30 * DAY_S
SWEEP_S = 300.0


class Server:
    """A server's stores, swept every five minutes as long as it runs, by a clock that may be wrong."""

    def __init__(self, retention_bytes: int | None = None, wrong_s: float = 0.0) -> None:
        self.stores = open_database("memory")
        self.images = ImageStore(MemoryBlobStore(), self.stores.ownership)
        self.retention = Retention(self.images, KEEP_S, retention_bytes)
        self.wrong_s = wrong_s  # by which the clock is ahead
        self.real_s = NOW_S
        self.made = 0
        self.start()

    @property
    def now_s(self) -> float:
        """What the clock says."""
        return self.real_s + self.wrong_s

    def start(self) -> SweepResult:
        """Start anew; what the first sweep removes."""
        self.sweeping = Sweeper(self.retention, self.stores, KEEP_S)
        return self.sweeping.sweep(self.now_s)

    def run(self, seconds: float) -> int:
        """Go on; how many images that removes."""
        removed = 0
        for _ in range(round(seconds / SWEEP_S)):
            self.real_s += SWEEP_S
            removed += self.sweeping.sweep(self.now_s).images
        return removed

    def make(self) -> str:
        """Make an image by a job, and let the job end; the image's digest."""
        digest = f"{self.made:064x}"
        self.made += 1
        self.stores.ownership.add(digest, "me", 10, self.now_s)
        self.images.blobs.put(f"{digest}.png", bytes(10))
        job = self.stores.jobs.add(new_job(job_spec(), self.now_s))
        self.stores.jobs.cancel(job.id, None, self.now_s)
        return digest

    def has(self, digest: str) -> bool:
        """Whether an image is there."""
        return self.images.blobs.get(f"{digest}.png") is not None

    def jobs(self) -> int:
        """How many jobs are known."""
        return len(self.stores.jobs.page(None, [], None, 100))


@pytest.fixture
def server() -> Server:
    """A server that runs, with one image."""
    server = Server()
    server.make()
    server.run(HOUR_S)
    return server


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("ahead_s", [31 * DAY_S, 365 * DAY_S])
def test_a_clock_that_is_ahead_removes_nothing(server: Server, ahead_s: float, *, is_restarted: bool):
    """Neither at a start nor while the server runs, for a day; once corrected, all goes on as if nothing had been."""
    server.wrong_s = ahead_s
    if is_restarted:
        assert server.start() == SweepResult(0, 0)
    assert server.run(23 * HOUR_S) == 0
    paused = [server.sweeping.is_paused]
    server.wrong_s = 0
    assert server.run(DAY_S) == 0
    assert [*paused, server.sweeping.is_paused] == [True, False]
    assert (server.has("0" * 64), server.jobs()) == (True, 1)


def test_a_server_that_was_off_for_months_resumes_after_a_day(server: Server):
    """Its clock is right, and nobody has to do anything."""
    server.real_s += 60 * DAY_S
    assert server.start() == SweepResult(0, 0)
    new = server.make()
    assert server.run(23 * HOUR_S) == 0
    assert server.run(2 * HOUR_S) == 1
    assert (server.has("0" * 64), server.has(new), server.jobs()) == (False, True, 1)


def test_a_server_that_is_switched_on_by_day_resumes_too(server: Server):
    """The day may be made of several runs: the time that the server was off in between does not count."""
    server.real_s += 60 * DAY_S
    removed = []
    for _ in range(4):
        removed.append(server.start().images + server.run(8 * HOUR_S + SWEEP_S))
        server.real_s += 16 * HOUR_S
    assert removed == [0, 0, 1, 0]


def test_a_clock_that_is_wrong_at_each_start_in_another_way_removes_nothing(server: Server):
    """Times that differ from start to start by a plausible day confirm nothing, because no server ran in between."""
    for days in range(31, 36):
        server.wrong_s = days * DAY_S
        assert server.start() == SweepResult(0, 0)


def test_a_week_without_running_is_not_a_clock_jump(server: Server):
    """Less than a quarter of `retention_days`: what is old is removed at once."""
    server.run(29 * DAY_S)
    server.real_s += 7 * DAY_S
    assert server.start() == SweepResult(1, 1)


def test_an_image_made_by_a_clock_that_was_ahead_gets_old(server: Server):
    """It is kept for `retention_days` from when the clock was corrected, not for a year longer."""
    server.wrong_s = 365 * DAY_S
    server.run(HOUR_S)
    image = server.make()
    server.wrong_s = 0
    server.run(29 * DAY_S)
    assert server.has(image)
    server.run(2 * DAY_S)
    assert (server.has(image), server.jobs()) == (False, 0)


@pytest.mark.parametrize("ahead_s", [7 * DAY_S, 365 * DAY_S])
def test_a_first_reading_that_was_ahead_keeps_nothing_for_ever(ahead_s: float):
    """A server whose clock was wrong from its very first start, by little or much, keeps no image for longer."""
    server = Server(wrong_s=ahead_s)
    image = server.make()
    server.wrong_s = 0
    server.run(29 * DAY_S)
    assert server.has(image)
    server.run(3 * DAY_S)
    assert (server.has(image), server.jobs()) == (False, 0)


def test_an_image_made_by_a_clock_that_was_behind_is_not_old(server: Server):
    """An image that a clock in 1970 dated is kept for `retention_days` from when the clock was corrected."""
    server.wrong_s = -server.real_s
    server.start()
    image = server.make()
    server.run(HOUR_S)
    server.wrong_s = 0
    server.run(29 * DAY_S)
    assert server.has(image)
    server.run(2 * DAY_S)
    assert (server.has(image), server.jobs()) == (False, 0)


def test_the_size_limit_applies_whatever_the_clock_says():
    """Else a disk would fill while it is not believed; no more is removed than is too much."""
    server = Server(retention_bytes=25)
    old, *others = (server.make() for _ in range(3))
    server.wrong_s = 365 * DAY_S
    assert server.start() == SweepResult(1, 0)
    assert [server.has(digest) for digest in (old, *others)] == [False, True, True]


def test_a_pause_is_logged_once_with_a_remedy(server: Server):
    """When the clock was read last, what it says now, and when retention goes on by itself."""
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
    assert "goes on" in resumed["event"]


def test_a_retention_of_hours_is_paused_for_hours():
    """A short `retention_days`, as for privacy, is at most doubled; no bound means a week and a day."""
    assert ClockRules.for_retention(4 * HOUR_S) == (HOUR_S, 4 * HOUR_S)
    assert ClockRules.for_retention(None) == (7 * DAY_S, DAY_S)


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.integers(0, 40)), max_size=12))
def test_no_jump_is_trusted_at_once(jumps: list[tuple[float, int]]):
    """Whatever a clock does, a believed reading is near the last believed one, or a day after the first of its kind."""
    rules = ClockRules.for_retention(KEEP_S)
    record, now_s, last_s = ClockRecord(NOW_S), NOW_S, NOW_S
    run_s = 0.0  # for which readings have followed each other plausibly
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
