"""A server around the test double, and a result to print, to show and to compare."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sd35.bench.aggregate import Load, Round, part_of
from sd35.bench.load import Asked
from sd35.bench.machine import Busy, Machine
from sd35.bench.monitor import Look
from sd35.bench.quality import Quality
from sd35.bench.results import Batches, ColdStart, Gpu, Memory, Plan, Result, Served, Span
from sd35.bench.statistics import Figure
from sd35.bench.workload import mixed
from tests.support.fake_backend import FakeBackend, Fault, fake_pool
from tests.support.serving import listening

QUIET = Busy(before_cores=0.01, during_cores=0.02, most_cores=0.3, cores=8)
BUSY = Busy(before_cores=0.01, during_cores=3.0, most_cores=8.0, cores=8)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The URL of a service over the fake backend. Images of "a fault" fail."""
    backend = FakeBackend(faults={"a fault": Fault.STEP_ERROR})
    with listening(fake_pool(tmp_path, backend)) as (host, port):
        yield f"http://{host}:{port}"


def asked(took_s: float, due_s: float = 0.0, kind: str = "4 steps", end: str = "made") -> Asked:
    """A request that took so long."""
    return Asked(kind, 8, due_s, due_s + took_s, end, "" if end == "made" else "429: full")  # type: ignore[arg-type]


@pytest.fixture
def result() -> Result:
    """Two loads in three rounds, on a quiet machine."""
    plan = Plan(clients=2, shares=(0.5,), rounds=3, seconds=2, warm_s=1, judged=2)
    rounds = [Round(0.0, [asked(0.5 + number / 100, due_s=number / 2) for _ in range(4)]) for number in range(3)]
    crowded = [Round(0.0, [*round_.asked, asked(0.01, end="refused")]) for round_ in rounds]
    loads = {Load("closed, 2 clients", clients=2): rounds, Load("open, 3/s", offered=3.0): crowded}
    return Result(
        made_at="2026-01-01T00:00:00+00:00",
        machine=Machine(
            system="Linux", processor="a processor", cores=8, memory_bytes=2**34, gpus=(), python="3.12",
            versions={"numpy": "2.4"}, commit="0123456789ab",
        ),
        busy=QUIET,
        served=Served(dialect="sd35", url=None, runs_here=True, settings={"backend": "onnx"}, models=None),
        workload=mixed(),
        workload_digest=mixed().digest,
        plan=plan,
        cold_start=ColdStart(ready_s=1.5, phases_s={"import": 0.7, "warm": 0.1}, first_image_s=0.2),
        parts=[part_of(load, done, plan.seconds, 0.0) for load, done in loads.items()],
        memory=Memory(peak_bytes=300_000_000, source="a test"),
        gpu=Gpu(why_not="no GPU"),
        batches=Batches(batches=10, row_steps=60, occupancy={"0.5": 4, "1": 6}),
        quality=Quality(
            reference="onnx/float32", images=2, psnr_db=40.0, least_psnr_db=39.0, ssim=0.99, least_ssim=0.98
        ),
        spans=[Span(name="warm-up", from_s=0, to_s=1), Span(name="round 1", from_s=1, to_s=3)],
        looks=[Look(at_s=0.25, resident_bytes=10**8, others_cores=0.1), Look(at_s=0.5, rows_per_batch=6, images=2)],
    )  # fmt: skip


def figure(value: float, half_width: float | None = None) -> Figure:
    """A figure."""
    return Figure(value=value, half_width=half_width)
