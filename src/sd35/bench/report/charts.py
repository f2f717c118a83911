"""The figures of a report: from a result to plots, each with a heading, a sentence and a legend."""

from collections.abc import Iterator, Sequence
from html import escape

from sd35.bench.monitoring.machine import BUSY_SHARE
from sd35.bench.report.formatting import format_estimate
from sd35.bench.report.plots import Band, Mark, Point, Series, bars, plot, ranks, stack
from sd35.bench.results import LoadResult, Matrix, Result
from sd35.bench.statistics import Estimate

_MB = 1e6
_MAX_DOTS = 2000  # requests in one plot: more make the page heavy and not clearer
_SECONDS = "seconds since the start of the measurement"


def result_charts(result: Result) -> Iterator[str]:
    """Draw all figures for which the result has data."""
    if any(load.offered_per_s for load in result.loads):
        yield _latency_over_load(result)
    yield _requests(result)
    bands = _bands(result)
    if any(sample.rows_per_batch is not None for sample in result.samples):
        yield _batches(result, bands)
    if result.batches and result.batches.occupancy:
        yield _occupancy(result.batches.occupancy)
    if result.memory.peak_bytes:
        yield _memory(result, bands)
    yield _background(result, bands)
    if result.cold_start.ready_s is not None:
        yield _cold_start(result)


def matrix_charts(matrix: Matrix) -> Iterator[str]:
    """Draw the throughput and the tail latency of each combination that ran."""
    ran = [cell for cell in matrix.cells if not cell.skip_reason]
    rates = [(cell.name, cell.images_per_s.value) for cell in ran if cell.images_per_s]
    latencies = [(cell.name, cell.p95_s.value) for cell in ran if cell.p95_s]
    yield figure("Images a second", "More is better.", ranks("images a second", rates))
    yield figure("95th percentile of latency, seconds", "Less is better.", ranks("seconds", latencies))


def figure(title: str, sentence: str, drawing: str, legend: Sequence[tuple[str, int]] = ()) -> str:
    """Return an HTML figure: a drawing with its heading, a sentence, and a legend of names and colours."""
    keys = "".join(f'<li><i class="c{colour}"></i>{escape(name)}</li>' for name, colour in legend)
    return (
        f"<figure><figcaption><h3>{escape(title)}</h3><p>{escape(sentence)}</p></figcaption>{drawing}"
        + (f'<ul class="legend">{keys}</ul>' if keys else "")
        + "</figure>"
    )


def _latency_over_load(result: Result) -> str:
    loads = sorted((load for load in result.loads if load.offered_per_s), key=lambda load: load.offered_per_s or 0)
    series = [
        Series("p50", 1, _points(loads, [load.all.p50_s for load in loads])),
        Series("p95", 2, _points(loads, [load.all.p95_s for load in loads])),
        Series("p99", 3, _points(loads, [load.all.p99_s for load in loads])),
    ]
    capacity = Mark(result.closed.images_per_s.value, "closed loop")
    return figure(
        "Latency over load",
        "Open loop: requests arrive at random, however many are waiting. Latency counts from the scheduled moment, and"
        " excludes refused and failed requests. The dashed line is the rate of the closed loop.",
        plot("requests a second", "seconds", series, marks=[capacity]),
        _legend(series),
    )


def _points(loads: Sequence[LoadResult], latencies: Sequence[Estimate | None]) -> list[Point]:
    return [
        Point(load.offered_per_s or 0, each.value, each.half_width or 0, f"{load.name}: {format_estimate(each)} s")
        for load, each in zip(loads, latencies, strict=True)
        if each
    ]


def _requests(result: Result) -> str:
    names = dict.fromkeys(each.name for load in result.loads for each in load.classes)
    completed: dict[str, list[Point]] = {name: [] for name in names}
    rejected: list[Point] = []
    for load in result.loads:
        columns = load.requests
        for name, scheduled_s, latency_s, status in zip(
            columns.class_name, columns.scheduled_s, columns.latency_s, columns.status, strict=True
        ):
            points = completed[name] if status == "completed" else rejected
            points.append(Point(scheduled_s, latency_s))
    stride = -(-sum(map(len, completed.values())) // _MAX_DOTS) or 1
    series = [
        Series(name, index % 3 + 1, points[::stride], "dots") for index, (name, points) in enumerate(completed.items())
    ]
    if rejected:
        series.append(Series("refused or failed", 4, rejected[:_MAX_DOTS], "crosses"))
    thinned = f" One in {stride} is shown." if stride > 1 else ""
    return figure(
        "Every request",
        f"Latency by scheduled moment. Shaded: the loads, one after the other.{thinned}",
        plot(_SECONDS, "seconds", series, _bands(result)),
        _legend(series),
    )


def _batches(result: Result, bands: Sequence[Band]) -> str:
    rows = [Point(each.time_s, each.rows_per_batch) for each in result.samples if each.rows_per_batch is not None]
    images = [Point(each.time_s, each.images) for each in result.samples if each.images is not None]
    series = [Series("rows in a batch, on average", 1, rows, "steps"), Series("images in the engine", 2, images)]
    return figure(
        "Batches over time",
        "An image without guidance is one row of a batch, an image with guidance is two.",
        plot(_SECONDS, "rows, images", series, bands),
        _legend(series),
    )


def _occupancy(occupancy: dict[str, int]) -> str:
    counts = [(f"{100 * float(share):g}", float(count)) for share, count in occupancy.items()]
    return figure(
        "Batch occupancy",
        "Number of batches by their share of rows in use, up to each share.",
        bars("rows in use, % of the maximum", "batches", counts),
    )


def _memory(result: Result, bands: Sequence[Band]) -> str:
    resident = [Point(each.time_s, each.resident_bytes / _MB) for each in result.samples if each.resident_bytes]
    series = [Series("resident memory", 1, resident)]
    if video := [Point(each.time_s, each.vram_bytes / _MB) for each in result.samples if each.vram_bytes]:
        series.append(Series("GPU memory", 2, video))
    sentence = f"Source: {result.memory.source}."
    return figure("Memory over time", sentence, plot(_SECONDS, "MB", series, bands), _legend(series))


def _background(result: Result, bands: Sequence[Band]) -> str:
    cores = [Point(each.time_s, each.background_cores) for each in result.samples if each.background_cores is not None]
    shares = [Point(each.time_s, each.engine_share) for each in result.samples if each.engine_share is not None]
    series = [Series("cores used by other processes", 4, cores)]
    sentence = "Processor time of processes other than the server and the load generator."
    if shares:
        sentence += " For comparison, the share of time in which the server's engine computed."
        series.append(Series("share of time in which the engine computed", 3, shares))
    limit = Mark(BUSY_SHARE * result.background.cores, "busy if the mean is above this", "y")
    drawing = plot(_SECONDS, "cores, share", series, bands, [limit])
    return figure("Background load", sentence, drawing, _legend(series))


def _cold_start(result: Result) -> str:
    cold = result.cold_start
    rest_s = (cold.ready_s or 0) - sum(cold.phases_s.values())
    pieces = [(name, phase_s) for name, phase_s in cold.phases_s.items() if phase_s > 0]
    pieces.append(("other", max(0.0, rest_s)))
    legend = [(f"{name} {phase_s:.2f} s", index + 1) for index, (name, phase_s) in enumerate(pieces)]
    sentence = f"{cold.ready_s:.2f} s from process start to ready, by the phases that the service reports."
    return figure("Cold start", sentence, stack(pieces, "s"), legend)


def _bands(result: Result) -> list[Band]:
    return [Band(span.start_s, span.end_s, span.name) for span in result.spans]


def _legend(series: Sequence[Series]) -> list[tuple[str, int]]:
    return [(each.name, each.colour) for each in series]
