"""The result of a run and of a matrix: JSON objects with a format version, written to files and read back."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from sd35.bench.frozen import Frozen
from sd35.bench.load.workload import Workload, describe_errors
from sd35.bench.monitoring.machine import BackgroundLoad, Machine
from sd35.bench.monitoring.monitor import MonitorSample
from sd35.bench.quality.comparison import Quality
from sd35.bench.statistics import Estimate
from sd35.errors import InvalidSetting
from sd35.parsing import read_json, shown

FORMAT: Literal["sd35-bench/2"] = "sd35-bench/2"
_USE_BENCH_JSON = "Use a bench.json that `sd35 bench --out` wrote with this version of sd35"


class Plan(Frozen):
    """The plan of a run. Each round runs the closed loop and then each open loop, for `seconds` each.

    In the closed loop, each of the `clients` waits for its image before it sends the next request. An open loop sends
    requests at a fixed average rate, without waiting.

    If the first image takes longer than `max_first_image_s`, the server is not measured. `seed_offset` is added to all
    image seeds, so that a server that keeps the images of an earlier run generates new ones. It is 0 for a server that
    was started for the run.
    """

    clients: int
    rates: tuple[float, ...] = ()  # requests a second of the open loops
    shares: tuple[float, ...] = ()  # without `rates`: rates as shares of the closed loop's images a second
    rounds: int
    seconds: float
    warmup_s: float
    quality_images: int  # images compared with the reference's
    max_first_image_s: float | None = None
    seed_offset: int = 0


class ServerInfo(Frozen):
    """The server under test.

    `is_local` says whether its process was visible on this machine. If not, the result's machine is the client's.
    `settings` is None if the server was already running, and `models` is None for a server of another project.
    """

    dialect: str
    url: str | None  # None if it was started for the run
    is_local: bool
    settings: dict[str, str] | None
    models: list[dict[str, Any]] | None


class ColdStart(Frozen):
    """The start of a server, in seconds.

    `ready_s` is the time from process start to ready, and `first_image_s` the latency of the first request. Both are
    None if the server was already running. `phases_s` has the duration of each phase that the server reports.
    """

    ready_s: float | None
    phases_s: dict[str, float]
    first_image_s: float | None


class ClassResult(Frozen):
    """The number of requests of one class, or of all classes, by result, and latencies of completed requests."""

    name: str
    completed: int
    refused: int
    failed: int
    p50_s: Estimate | None
    p95_s: Estimate | None
    p99_s: Estimate | None

    @property
    def latencies_s(self) -> dict[int, Estimate | None]:
        """The latencies in seconds, by percentile."""
        return {50: self.p50_s, 95: self.p95_s, 99: self.p99_s}


class RequestColumns(Frozen):
    """All requests of a load as columns of equal length. `scheduled_s` counts from the start of the monitor."""

    round: list[int]
    class_name: list[str]
    scheduled_s: list[float]
    latency_s: list[float]
    status: list[str]


class LoadResult(Frozen):
    """The results of one load over all rounds.

    `offered_per_s` is the request rate of an open loop. A row-step is one step of one row of the transformer's batch.
    An image has one row, or two with guidance. `errors` has the server's error messages and their counts.
    """

    name: str
    loop: Literal["closed", "open"]
    clients: int | None
    offered_per_s: float | None
    images_per_s: Estimate
    row_steps_per_s: Estimate | None
    all: ClassResult
    classes: list[ClassResult]
    errors: dict[str, int]
    requests: RequestColumns


class Span(Frozen):
    """A named part of the run: the warm-up, or a load in a round. Times count from the start of the monitor."""

    name: str
    start_s: float
    end_s: float


class Memory(Frozen):
    """Peak memory of all processes of the server together. `source` says where the figure comes from."""

    peak_bytes: int | None
    source: str


class Gpu(Frozen):
    """GPU memory and energy of the server. `skip_reason` says why nothing was measured, or is None."""

    skip_reason: str | None
    peak_bytes: int | None = None
    energy_j: float | None = None
    energy_per_image_j: float | None = None


class Batches(Frozen):
    """The engine's batches during all loads. `batches` counts a batch once for each step.

    `row_steps` is the sum of the transformer rows of these batches. `occupancy` counts batches by their share of the
    maximum rows. Its keys are upper bounds, such as "0.125".
    """

    batches: int
    row_steps: int
    occupancy: dict[str, int]


class Result(Frozen):
    """One run against one server."""

    format: Literal["sd35-bench/2"] = FORMAT
    created_at: str
    machine: Machine
    background: BackgroundLoad
    server: ServerInfo
    workload: Workload
    workload_digest: str
    plan: Plan
    cold_start: ColdStart
    loads: list[LoadResult]
    memory: Memory
    gpu: Gpu
    batches: Batches | None
    quality: Quality | None
    spans: list[Span]
    samples: list[MonitorSample]

    @property
    def closed(self) -> LoadResult:
        """The result of the closed loop."""
        return next(load for load in self.loads if load.loop == "closed")


class Cell(Frozen):
    """One combination of backend, precision and batch size: its figures, or the reason why it was skipped."""

    backend: str
    precision: str
    batch_rows: int
    skip_reason: str | None = None
    images_per_s: Estimate | None = None
    row_steps_per_s: Estimate | None = None
    p95_s: Estimate | None = None
    peak_bytes: int | None = None
    vram_bytes: int | None = None
    ready_s: float | None = None
    quality: Quality | None = None

    @property
    def name(self) -> str:
        """The name, such as "onnx/float32, 8 rows"."""
        return f"{self.backend}/{self.precision}, {self.batch_rows} row{'s' * (self.batch_rows > 1)}"


class Matrix(Frozen):
    """Backends, precisions and batch sizes measured one after the other. `settings` were the same for all servers."""

    format: Literal["sd35-bench-matrix/2"] = "sd35-bench-matrix/2"
    created_at: str
    machine: Machine
    background: BackgroundLoad
    workload: Workload
    workload_digest: str
    plan: Plan
    checkpoints: list[str]
    settings: dict[str, str]
    cells: list[Cell]


def write(result: Result | Matrix, path: Path, page: str = "") -> None:
    """Write a result as JSON, and its page to the same name with `.html`.

    Raises InvalidSetting if a file cannot be written.
    """
    with _writing_to(path.parent):
        path.write_text(result.model_dump_json() + "\n", encoding="utf-8")
        if page:
            path.with_suffix(".html").write_text(page, encoding="utf-8")


def check_writable(folder: Path) -> None:
    """Create the directory of `--out`. Raises InvalidSetting if files cannot be written there."""
    with _writing_to(folder), tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Create a directory for the block, and raise InvalidSetting for an I/O error of the block."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InvalidSetting(
            f"--out: {folder} cannot be written to ({reason}); allowed: a directory that you may write to, or a new one"
        ) from error


def read(path: Path) -> Result:
    """Read the result of a run. Raises InvalidSetting if the file is something else, or has another format version."""
    try:
        content = read_json(path)
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be read: {error.strerror or error}. {_USE_BENCH_JSON}") from error
    except ValueError as error:
        raise InvalidSetting(f"{path} is not JSON: {error}. {_USE_BENCH_JSON}") from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise InvalidSetting(f"{path}: format: got {shown(version)}; allowed: {FORMAT!r}. {_USE_BENCH_JSON}")
    try:
        return Result.model_validate(content)
    except ValidationError as error:
        raise InvalidSetting(f"{path}: {describe_errors(error)}. {_USE_BENCH_JSON}") from error


def peak(values: Sequence[int | None]) -> int | None:
    """Return the largest known value, or None if none is known."""
    return max((value for value in values if value is not None), default=None)
