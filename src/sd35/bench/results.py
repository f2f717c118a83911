"""What a run found, as it is written and read: one JSON object, of one version of this format."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sd35.bench.machine import Busy, Machine
from sd35.bench.monitor import Look
from sd35.bench.quality import Quality
from sd35.bench.statistics import Figure
from sd35.bench.workload import Workload, explained
from sd35.errors import InvalidSetting
from sd35.parsing import read_json, shown

FORMAT: Literal["sd35-bench/1"] = "sd35-bench/1"
MATRIX_FORMAT: Literal["sd35-bench-matrix/1"] = "sd35-bench-matrix/1"
Loop = Literal["closed", "open"]
Read = TypeVar("Read", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Plan(_Frozen):
    """How it is measured: in each round the closed loop, then each rate of the open one. `seconds`: of each of them.

    `most_first_s`: a server whose first image takes longer is not measured. `salt`: of the images' seeds, see
    `Workload.requests`; 0 with a server that is started for the run, and has no image yet.
    """

    clients: int
    rates: tuple[float, ...] = ()  # a second
    shares: tuple[float, ...] = ()  # of the closed loop's images a second, where no rates are given
    rounds: int
    seconds: float
    warm_s: float
    judged: int  # images that are compared with the reference's
    most_first_s: float | None = None
    salt: int = 0


class Served(_Frozen):
    """The server that was measured. `models` and `settings` are those of this project's servers.

    `runs_here`: whether its process was seen on this machine; else the machine of the result is only who asked.
    """

    dialect: str
    url: str | None  # None: it was started here
    runs_here: bool
    settings: dict[str, str] | None
    models: list[dict[str, Any]] | None


class ColdStart(_Frozen):
    """From the process's start to ready, and the phases that the service itself tells; the first image after that."""

    ready_s: float | None
    phases_s: dict[str, float]
    first_image_s: float | None


class OfKind(_Frozen):
    """One class of requests, or all together: how many ended how, and latencies in seconds of those made."""

    name: str
    made: int
    refused: int
    failed: int
    p50_s: Figure | None
    p95_s: Figure | None
    p99_s: Figure | None


class Samples(_Frozen):
    """Every request, by columns. `due_s` is from the first look of the watch on."""

    round: list[int]
    kind: list[str]
    due_s: list[float]
    took_s: list[float]
    end: list[str]


class Part(_Frozen):
    """One load, over all rounds. `offered`: requests a second in an open loop. `trouble`: servers' words, how often."""

    name: str
    loop: Loop
    clients: int | None
    offered: float | None
    images_per_s: Figure
    row_steps_per_s: Figure | None
    all: OfKind
    kinds: list[OfKind]
    trouble: dict[str, int]
    samples: Samples


class Span(_Frozen):
    """When a part of the run took place, in seconds from the first look of the watch on."""

    name: str
    from_s: float
    to_s: float


class Memory(_Frozen):
    """The most memory that was seen, of the server's processes together. `source` says who told."""

    peak_bytes: int | None
    source: str


class Gpu(_Frozen):
    """Of the server's processes. `why_not`: why there is nothing."""

    why_not: str | None
    peak_bytes: int | None = None
    energy_j: float | None = None
    energy_per_image_j: float | None = None


class Batches(_Frozen):
    """The engine's batches in the whole run; `occupancy` counts them by the share of their rows that were taken."""

    batches: int
    row_steps: int
    occupancy: dict[str, int]


class Result(_Frozen):
    """One run against one server."""

    format: Literal["sd35-bench/1"] = FORMAT
    made_at: str
    machine: Machine
    busy: Busy
    served: Served
    workload: Workload
    workload_digest: str
    plan: Plan
    cold_start: ColdStart
    parts: list[Part]
    memory: Memory
    gpu: Gpu
    batches: Batches | None
    quality: Quality | None
    spans: list[Span]
    looks: list[Look]

    @property
    def closed(self) -> Part:
        """The closed loop's."""
        return next(part for part in self.parts if part.loop == "closed")


class Cell(_Frozen):
    """One combination of a matrix: its figures, or why it was not run."""

    backend: str
    precision: str
    batch: int
    why_not: str | None = None
    images_per_s: Figure | None = None
    row_steps_per_s: Figure | None = None
    p95_s: Figure | None = None
    peak_bytes: int | None = None
    vram_bytes: int | None = None
    ready_s: float | None = None
    quality: Quality | None = None

    @property
    def name(self) -> str:
        """As "onnx/float32, 8 rows"."""
        return f"{self.backend}/{self.precision}, {self.batch} row{'s' * (self.batch > 1)}"


class Matrix(_Frozen):
    """Backends, precisions and batches on one machine, one after the other. `settings`: what all servers were given."""

    format: Literal["sd35-bench-matrix/1"] = MATRIX_FORMAT
    made_at: str
    machine: Machine
    busy: Busy
    workload: Workload
    workload_digest: str
    plan: Plan
    checkpoints: list[str]
    settings: dict[str, str]
    cells: list[Cell]


def write(found: Result | Matrix, path: Path, page: str = "") -> None:
    """To a file, and its page, if there is one, beside it. Raises InvalidSetting where they cannot be written."""
    with _written(path.parent):
        path.write_text(found.model_dump_json() + "\n", encoding="utf-8")
        if page:
            path.with_suffix(".html").write_text(page, encoding="utf-8")


def check_writable(folder: Path) -> None:
    """Makes the directory. Raises InvalidSetting where nothing can be written there: after a run it is too late."""
    with _written(folder), tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        why = error.strerror or error
        allowed = "a directory, which is made where it is not there"
        raise InvalidSetting(f"--out: {folder} cannot be written to: {why}; allowed: {allowed}") from error


def read(path: Path) -> Result:
    """A run's result. Raises InvalidSetting where the file is none, or of another version."""
    try:
        content = read_json(path)
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InvalidSetting(f"{path} is not JSON: {error}; allowed: what `sd35 bench --out` wrote") from error
    came = content.get("format") if isinstance(content, dict) else None
    if came != FORMAT:
        raise InvalidSetting(f"{path}: format: got {shown(came)}; allowed: {FORMAT!r}, which `sd35 bench --out` writes")
    try:
        return Result.model_validate(content)
    except ValidationError as error:
        raise InvalidSetting(f"{path}: {explained(error)}") from error


def peak(values: Sequence[int | None]) -> int | None:
    """The most of what is known."""
    return max((value for value in values if value is not None), default=None)
