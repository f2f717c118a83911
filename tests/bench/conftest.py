"""A server around the fake backend, and a result to print, render and compare."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sd35.bench.aggregate import Load, Round, load_result
from sd35.bench.load.dialects import Status
from sd35.bench.load.generator import RequestResult
from sd35.bench.load.workload import mixed_workload
from sd35.bench.monitoring.machine import BackgroundLoad, Machine
from sd35.bench.monitoring.monitor import MonitorSample
from sd35.bench.quality.comparison import Quality
from sd35.bench.results import Batches, ColdStart, Gpu, Memory, Plan, Result, ServerInfo, Span
from sd35.bench.statistics import Estimate
from tests.support.fake_backend import FakeBackend, Fault, fake_pool
from tests.support.serving import listening

QUIET = BackgroundLoad(before_cores=0.01, during_cores=0.02, peak_cores=0.3, cores=8)
BUSY = BackgroundLoad(before_cores=0.01, during_cores=3.0, peak_cores=8.0, cores=8)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The address of a service over the fake backend. Images of "a fault" fail."""
    backend = FakeBackend(faults={"a fault": Fault.STEP_ERROR})
    with listening(fake_pool(tmp_path, backend)) as (host, port):
        yield f"http://{host}:{port}"


def request_result(latency_s: float, scheduled_s: float = 0.0, status: Status = "completed") -> RequestResult:
    """Make the result of a request with a given latency."""
    message = "" if status == "completed" else "429: full"
    return RequestResult("4 steps", 8, scheduled_s, scheduled_s + latency_s, status, message)


@pytest.fixture
def result() -> Result:
    """A result with two loads in three rounds on a quiet machine."""
    plan = Plan(clients=2, shares=(0.5,), rounds=3, seconds=2, warmup_s=1, quality_images=2)
    completed = [request_result(0.5 + number / 100, scheduled_s=number / 2) for number in range(3)]
    rounds = [Round(0.0, 4 * [each]) for each in completed]
    crowded = [Round(0.0, [*round_.results, request_result(0.01, status="refused")]) for round_ in rounds]
    loads = {Load("closed, 2 clients", clients=2): rounds, Load("open, 3/s", offered_per_s=3.0): crowded}
    return Result(
        created_at="2026-01-01T00:00:00+00:00",
        machine=Machine(
            system="Linux", processor="a processor", cores=8, memory_bytes=2**34, gpus=(), python="3.12",
            versions={"numpy": "2.4"}, commit="0123456789ab",
        ),
        background=QUIET,
        server=ServerInfo(dialect="sd35", url=None, is_local=True, settings={"backend": "onnx"}, models=None),
        workload=mixed_workload(),
        workload_digest=mixed_workload().digest,
        plan=plan,
        cold_start=ColdStart(ready_s=1.5, phases_s={"import": 0.7, "warm": 0.1}, first_image_s=0.2),
        loads=[load_result(load, done, plan.seconds, 0.0) for load, done in loads.items()],
        memory=Memory(peak_bytes=300_000_000, source="a test"),
        gpu=Gpu(skip_reason="no GPU"),
        batches=Batches(batches=10, row_steps=60, occupancy={"0.5": 4, "1": 6}),
        quality=Quality(
            reference="onnx/float32", images=2, psnr_db=40.0, min_psnr_db=39.0, ssim=0.99, min_ssim=0.98
        ),
        spans=[Span(name="warm-up", start_s=0, end_s=1), Span(name="round 1", start_s=1, end_s=3)],
        samples=[
            MonitorSample(time_s=0.25, resident_bytes=10**8, background_cores=0.1),
            MonitorSample(time_s=0.5, rows_per_batch=6, images=2),
        ],
    )  # fmt: skip


def estimate_of(value: float, half_width: float | None = None) -> Estimate:
    """Make an estimate."""
    return Estimate(value=value, half_width=half_width)
