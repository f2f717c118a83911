"""The figures of a report: plots of a result, each with a heading, a sentence and a legend."""

from collections.abc import Iterator, Sequence
from html import escape

from sd35.bench.monitoring.machine import BUSY_SHARE
from sd35.bench.report.formatting import format_estimate
from sd35.bench.report.plots import Band, Mark, Point, Series, bars, plot, ranks, stack
from sd35.bench.results import LoadResult, Matrix, Result
from sd35.bench.statistics import Estimate

_MB = 1e6
_MAX_DOTS = 2000  # requests in one plot: more would make the page larger, but not clearer
_SECONDS = "seconds since the start of the measurement"


def result_charts(result: Result) -> Iterator[str]:
    """Draw all figures for which the result has data."""
    if any(load.offered_per_s for load in result.loads):
        yield _latency_over_load(result)
    yield _requests(result)
    if any(sample.rows_per_batch is not None for sample in result.samples):
        yield _batches(result)
    if result.batches and result.batches.occupancy:
        yield _occupancy(result.batches.occupancy)
    if result.memory.peak_bytes:
        yield _memory(result)
    yield _background(result)
    if result.cold_start.ready_s is not None:
        yield _cold_start(result)


def matrix_charts(matrix: Matrix) -> Iterator[str]:
    """Draw the throughput and the tail latency of each combination that ran."""
    ran = [cell for cell in matrix.cells if not cell.skip_reason]
    rates = [(cell.name, cell.images_per_s.value) for cell in ran if cell.images_per_s]
    latencies = [(cell.name, cell.p95_s.value) for cell in ran if cell.p95_s]
    yield figure("Images a second", "More is better.", ranks("images a second", rates))
    yield figure("95th percentile of latency, seconds", "Less is better.", ranks("seconds", latencies))


def figure(title: str, sentence: str, svg: str, legend: Sequence[tuple[str, int]] = ()) -> str:
    """Return an HTML figure: a plot with its heading, a sentence, and a legend of names and colours."""
    keys = "".join(f'<li><i class="c{colour}"></i>{escape(name)}</li>' for name, colour in legend)
    return (
        f"<figure><figcaption><h3>{escape(title)}</h3><p>{escape(sentence)}</p></figcaption>{svg}"
        + (f'<ul class="legend">{keys}</ul>' if keys else "")
        + "</figure>"
    )


def _latency_over_load(result: Result) -> str:
    loads = sorted((load for load in result.loads if load.offered_per_s), key=lambda load: load.offered_per_s or 0)
    series = [
        Series(f"p{percent}", colour, [_point(load, each) for load in loads if (each := load.all.latencies_s[percent])])
        for colour, percent in enumerate((50, 95, 99), 1)
    ]
    capacity = Mark(result.closed.images_per_s.value, "closed loop")
    return figure(
        "Latency over load",
        "Open loop: requests arrive at random, however many are waiting. Latency counts from the scheduled moment, and"
        " excludes refused and failed requests. The dashed line is the rate of the closed loop.",
        plot("requests a second", "seconds", series, marks=[capacity]),
        _legend(series),
    )


def _point(load: LoadResult, latency: Estimate) -> Point:
    tooltip = f"{load.name}: {format_estimate(latency)} s"
    return Point(load.offered_per_s or 0, latency.value, latency.half_width or 0, tooltip)


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
    sentence = f"Latency by scheduled moment. Shaded: the loads, one after the other.{thinned}"
    return _over_time(result, "Every request", sentence, "seconds", series)


def _batches(result: Result) -> str:
    series = [
        Series("rows in a batch, on average", 1, _samples(result, "rows_per_batch"), "steps"),
        Series("images in the engine", 2, _samples(result, "images")),
    ]
    sentence = "An image without guidance is one row of a batch, an image with guidance is two."
    return _over_time(result, "Batches over time", sentence, "rows, images", series)


def _occupancy(occupancy: dict[str, int]) -> str:
    counts = [(f"{100 * float(share):g}", float(count)) for share, count in occupancy.items()]
    return figure(
        "Batch occupancy",
        "Number of batches by their share of rows in use, up to each share.",
        bars("rows in use, % of the maximum", "batches", counts),
    )


def _memory(result: Result) -> str:
    series = [Series("resident memory", 1, _samples(result, "resident_bytes", _MB))]
    if result.gpu.peak_bytes:
        series.append(Series("GPU memory", 2, _samples(result, "vram_bytes", _MB)))
    return _over_time(result, "Memory over time", f"Source: {result.memory.source}.", "MB", series)


def _background(result: Result) -> str:
    series = [Series("cores used by other processes", 4, _samples(result, "background_cores"))]
    sentence = "Processor time of processes other than the server and the load generator."
    if shares := _samples(result, "engine_share"):
        sentence += " For comparison, the share of time in which the server's engine computed."
        series.append(Series("share of time in which the engine computed", 3, shares))
    limit = Mark(BUSY_SHARE * result.background.cores, "busy if the mean is above this", "y")
    return _over_time(result, "Background load", sentence, "cores, share", series, [limit])


def _cold_start(result: Result) -> str:
    cold = result.cold_start
    rest_s = (cold.ready_s or 0) - sum(cold.phases_s.values())
    pieces = [(name, phase_s) for name, phase_s in cold.phases_s.items() if phase_s > 0]
    pieces.append(("other", max(0.0, rest_s)))
    legend = [(f"{name} {phase_s:.2f} s", index + 1) for index, (name, phase_s) in enumerate(pieces)]
    sentence = f"{cold.ready_s:.2f} s from process start to ready, by the phases that the service reports."
    return figure("Cold start", sentence, stack(pieces, "s"), legend)


def _samples(result: Result, field: str, unit: float = 1.0) -> list[Point]:
    """Return the known values of a field of the samples, divided by `unit`."""
    values = ((sample.time_s, getattr(sample, field)) for sample in result.samples)
    return [Point(time_s, value / unit) for time_s, value in values if value is not None]


def _over_time(  # noqa: PLR0913, PLR0917  the parts of a figure
    result: Result, title: str, sentence: str, unit: str, series: Sequence[Series], marks: Sequence[Mark] = ()
) -> str:
    """Plot series over the time of the measurement. The loads are shaded."""
    bands = [Band(span.start_s, span.end_s, span.name) for span in result.spans]
    return figure(title, sentence, plot(_SECONDS, unit, series, bands, marks), _legend(series))


def _legend(series: Sequence[Series]) -> list[tuple[str, int]]:
    return [(each.name, each.colour) for each in series]
